"""The processes of one run: they meet, agree, and notice when one is gone.

Each keeps a connection to process 0 from before JAX starts until it ends. JAX's
own service does not do: it ends a process with SIGABRT, cannot say who is
missing at the start, and learns late that a process was killed. The kernel
closes a killed process's connections at once, and tests those of a machine that
does not answer.
"""

import atexit
import contextlib
import hashlib
import json
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jax

from peft_jax.train.preemption import EXIT_CODE

START_TIMEOUT = 600.0  # twice JAX's, as machines may install before they start
HOST_TIMEOUT = 60.0

# How long a failure waits for the news that another process was its cause.
_NEWS_SECONDS = 3.0
_RETRY_SECONDS = 0.2
_THREAD = "peft_jax.hosts"


class HostsError(ValueError):
  """Processes that cannot run together."""


class Hosts:
  """The processes of one run, as one of them sees them.

  As a context it tells the others how it ended.

  Example:
    >>> with Hosts() as alone:
    ...   len(alone.agree({"BATCH_SIZE": "8"}))
    12
  """

  def __init__(
    self,
    process: int = 0,
    names: Sequence[str] = ("",),
    lines: Mapping[int, "_Line"] | None = None,
    *,
    start_timeout: float = START_TIMEOUT,
  ) -> None:
    """Listens to the others, if there are any, until the process ends.

    Args:
      process: which one this is.
      names: of the machines, by process.
      lines: process -> connection; process 0 has all, the others that to it.
      start_timeout: seconds that `agree` waits for the others.
    """
    self.process, self.names = process, tuple(names)
    self._lines = dict(lines or {})
    self._start_timeout = start_timeout
    self._news = threading.Condition()
    self._facts: dict[int, dict[str, str]] = {}
    self._verdict: str | None = None
    self._left: set[int] = set()
    self._ended = self._failed = False
    if self._lines:
      threading.Thread(target=self._listen, name=_THREAD, daemon=True).start()
      # Runs before JAX's, which would wait for those that are gone.
      atexit.register(self._at_exit)

  def __enter__(self) -> "Hosts":
    return self

  def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
    if error is None or isinstance(error, SystemExit):
      self._leave()
    else:
      self._fail(error)

  def agree(self, facts: Mapping[str, str]) -> str:
    """Returns a hash of the facts, which all processes have alike.

    Args:
      facts: name -> value.

    Raises:
      HostsError: on every process, with the facts that differ and on which
        processes; or if one does not come to this point in time.
    """
    text = json.dumps(dict(facts), sort_keys=True)
    if self._lines:
      if self.process:
        self._send({"facts": dict(facts)})
      self._facts[0] = dict(facts)
      wait = self._start_timeout * (2 if self.process else 1)
      with self._news:
        if not self.process:
          self._news.wait_for(lambda: len(self._facts) == len(self.names), wait)
          self._verdict = self._compare()
          # Before the others can send those of another run.
          self._facts.clear()
          self._send({"verdict": self._verdict})
        elif not self._news.wait_for(lambda: self._verdict is not None, wait):
          self._verdict = _late(self._start_timeout, self._named([0]))
      verdict, self._verdict = self._verdict, None
      if verdict:
        self._left.update(range(len(self.names)))  # they stop by themselves
        raise HostsError(verdict)
    return hashlib.sha256(text.encode()).hexdigest()[:12]

  def _compare(self) -> str:
    missing = [i for i in range(len(self.names)) if i not in self._facts]
    if missing:
      return _late(self._start_timeout, self._named(missing))
    found = []
    for name in sorted(set().union(*self._facts.values())):
      having: dict[str, list[int]] = {}
      for i in range(len(self.names)):
        having.setdefault(self._facts[i].get(name, "nothing"), []).append(i)
      if len(having) > 1:
        each = [
          f"{value} on {self._named(who)}" for value, who in having.items()
        ]
        found.append(f"{name}: {', '.join(each)}")
    if not found:
      return ""
    return (
      f"expected the same settings on all {len(self.names)} processes, found"
      f" {len(found)} that differ. {'; '.join(found)}. Nothing was written:"
      " start all processes with one command and the same files."
    )

  def _named(self, processes: Sequence[int]) -> str:
    return _named(processes, self.names)

  def _title(self, process: int) -> str:
    return f"P{self._named([process])[1:]}"

  def _send(self, message: dict[str, Any]) -> None:
    for line in self._lines.values():
      line.send(message)

  def _listen(self) -> None:
    """Takes in what the others say, until the last is gone."""
    with selectors.DefaultSelector() as selector:
      for process, line in self._lines.items():
        selector.register(line, selectors.EVENT_READ, process)
        for message in line.early:
          self._take(process, message)
      while selector.get_map():
        for key, _ in selector.select():
          try:
            messages = self._lines[key.data].receive()
          except (OSError, ValueError):
            selector.unregister(key.fileobj)
            self._lines[key.data].close()
            self._lost(key.data)
          else:
            for message in messages:
              self._take(key.data, message)

  def _take(self, process: int, message: dict[str, Any]) -> None:
    with self._news:
      if "facts" in message:
        self._facts[process] = message["facts"]
      elif "verdict" in message:
        self._verdict = message["verdict"]
      elif "left" in message:
        self._left.add(process)
      self._news.notify_all()
    if "stop" in message and not self._failed:
      self._stop(message["stop"], message["code"])

  def _lost(self, process: int) -> None:
    if process in self._left or self._failed:
      return
    self._stop(
      f"{self._title(process)} is gone: killed, or its machine"
      f" does not answer. The other processes exit {EXIT_CODE} for restart; the"
      " same command goes on from the last checkpoint.",
      EXIT_CODE,
    )

  def _stop(self, text: str, code: int) -> NoReturn:
    """Ends this process, and through process 0 the others."""
    print(text, file=sys.stderr, flush=True)
    if not self.process:
      self._send({"stop": text, "code": code})
      time.sleep(_RETRY_SECONDS)  # for them to read it before JAX notices
    # The main thread waits for the one that is gone, and cannot end.
    os._exit(code)

  def _leave(self) -> None:
    if not self._ended:
      self._ended = True
      self._send({"left": True})

  def _fail(self, error: BaseException) -> None:
    """Tells the others why this process stops."""
    if self._ended or not self._lines:
      return
    if not isinstance(error, ValueError):
      # Links that break say so here before the thread hears who is gone.
      time.sleep(_NEWS_SECONDS)
    self._ended = self._failed = True
    if not isinstance(error, HostsError):
      text = (
        f"{self._title(self.process)} stopped, and so do the others:"
        f" {type(error).__name__}: {error}"
      )
      self._send({"stop": text, "code": 1})
    atexit.register(_end)

  def _at_exit(self) -> None:
    """Tells of an error that nobody caught; T5X's loop has no place for it."""
    error = getattr(sys, "last_value", None)
    if error is not None and not self._ended:
      self._fail(error)
      _end()
    self._leave()


ALONE = Hosts()


def join(
  address: str | None = None,
  count: int | None = None,
  process: int | None = None,
  *,
  start_timeout: float = START_TIMEOUT,
  host_timeout: float = HOST_TIMEOUT,
) -> Hosts:
  """Meets the other processes of a run, then lets JAX connect them.

  Call it before JAX is used. What is None is found out as
  `jax.distributed.initialize` does, on Cloud TPU and under Slurm for example.
  Where nothing is known of others there are none.

  Example:
    hosts = join("10.0.0.1:1234", 4, 0)

  Args:
    address: HOST:PORT of process 0.
    count: number of processes.
    process: which one this is, from 0.
    start_timeout: seconds to wait for all to start.
    host_timeout: seconds after which a machine that does not answer is gone; a
      process that is killed is noticed at once.

  Raises:
    HostsError: if the three do not fit together, or not all processes came;
      those that are missing are named.
  """
  from jax._src.clusters import ClusterEnv

  _check_timeouts(start_timeout=start_timeout, host_timeout=host_timeout)
  address, count, process, _ = ClusterEnv.auto_detect_unset_distributed_params(
    address or os.environ.get("JAX_COORDINATOR_ADDRESS"),
    count,
    process,
    None,
    None,
    int(start_timeout),
  )
  if count == 1 or (address, count, process) == (None, None, None):
    return ALONE
  checked = _checked(address, count, process)
  hosts = meet(*checked, start_timeout=start_timeout, host_timeout=host_timeout)
  jax.distributed.initialize(
    *checked,
    initialization_timeout=int(start_timeout),
    # Ours comes first, with a name; this one ends a process that hangs.
    heartbeat_timeout_seconds=int(2 * host_timeout),
  )
  return hosts


def _checked(
  address: str | None, count: int | None, process: int | None
) -> tuple[str, int, int]:
  host, _, port = (address or "").rpartition(":")
  if not host or not port.isdigit():
    raise HostsError(
      f"expected --coordinator_address HOST:PORT of process 0, found {address}."
    )
  if count is None or count < 1:
    raise HostsError(f"expected --num_processes of 1 or more, found {count}.")
  if process is None or not 0 <= process < count:
    raise HostsError(
      f"expected --process_id from 0 to {count - 1}, found {process}."
    )
  return f"{host}:{port}", count, process


def _check_timeouts(**timeouts: float) -> None:
  for name, seconds in timeouts.items():
    if seconds < 1:
      raise HostsError(f"expected {name} of 1 second or more, found {seconds}.")


def meet(
  address: str,
  count: int,
  process: int,
  *,
  start_timeout: float = START_TIMEOUT,
  host_timeout: float = HOST_TIMEOUT,
) -> Hosts:
  """Returns the processes, connected, when all are there.

  Args:
    address: HOST:PORT where process 0 listens until all have come.
    count: number of processes, at least 2.
    process: which one this is.
    start_timeout: see `join`.
    host_timeout: see `join`.

  Raises:
    HostsError: if one does not come in time, comes twice, or expects another
      number of processes. Every process that came raises the same.
  """
  host, _, port = address.rpartition(":")
  deadline = time.monotonic() + start_timeout
  hello = {"process": process, "host": socket.gethostname(), "count": count}
  if process:
    line, names = _call(
      host.strip("[]"), int(port), hello, deadline, start_timeout
    )
    lines = {0: line}
  else:
    with _listener(int(port), deadline) as listener:
      lines, names = _gather(listener, hello, deadline, start_timeout)
  for line in lines.values():
    line.keep_alive(host_timeout)
  return Hosts(process, names, lines, start_timeout=start_timeout)


def _listener(port: int, deadline: float) -> socket.socket:
  """Returns a socket at the port that JAX's service then listens at."""
  both = socket.has_dualstack_ipv6()
  family = socket.AF_INET6 if both else socket.AF_INET
  while True:
    try:
      return socket.create_server(
        ("", port), family=family, dualstack_ipv6=both, backlog=1024
      )
    except OSError as error:
      # What ran before may still be ending.
      if time.monotonic() > deadline:
        raise HostsError(
          f"expected port {port} of --coordinator_address to be free here, on"
          f" {socket.gethostname()}, found: {error}. Choose another, alike on"
          " all processes."
        ) from error
      time.sleep(_RETRY_SECONDS)


def _gather(
  listener: socket.socket,
  own: Mapping[str, Any],
  deadline: float,
  start_timeout: float,
) -> tuple[dict[int, "_Line"], list[str]]:
  """Waits for all other processes and greets them."""
  count, hosts, problem = own["count"], {0: own["host"]}, ""
  lines: dict[int, _Line] = {}
  with selectors.DefaultSelector() as selector:
    selector.register(listener, selectors.EVENT_READ, None)
    while not problem:
      there, wait = len(lines) == count - 1, deadline - time.monotonic()
      if not there and wait <= 0:
        missing = [i for i in range(1, count) if i not in lines]
        came = [hosts.get(i, "") for i in range(count)]
        problem = _late(
          start_timeout,
          _named(missing, _known_names(count)),
          f"{len(lines) + 1} of {count}: {_named([0, *sorted(lines)], came)}",
        )
        break
      events = selector.select(0 if there else wait)
      if there and not events:  # nobody left again
        break
      for key, _ in events:
        if key.fileobj is listener:
          line = _Line(listener.accept()[0])
          selector.register(line, selectors.EVENT_READ, line)
          continue
        line = key.data
        try:
          for message in line.receive():
            earlier = lines.get(message["process"])
            if earlier and line.ended():  # this one has come again before
              continue
            if earlier and earlier.ended():  # and this is who came again
              del lines[message["process"]]
            problem = problem or _refusal(message, own, lines, hosts)
            lines[message["process"]] = line
            hosts[message["process"]] = message["host"]
        except (OSError, ValueError, TypeError, KeyError):
          # Left again, or never one of ours: it may come once more.
          selector.unregister(line)
          line.close()
          lines = {i: other for i, other in lines.items() if other is not line}
    _greet(selector, lines, problem or [hosts.get(i, "") for i in range(count)])
  if problem:
    raise HostsError(problem)
  return lines, [hosts[i] for i in range(count)]


def _greet(
  selector: selectors.BaseSelector,
  lines: Mapping[int, "_Line"],
  answer: str | list[str],
) -> None:
  """Answers all that came, and lets those go that are not needed."""
  refused = isinstance(answer, str)
  for key in selector.get_map().values():
    line = key.data
    if line and refused:
      line.send({"refused": answer})
    elif line in lines.values():
      line.send({"names": answer})
    if line and (refused or line not in lines.values()):
      line.close()


def _refusal(
  message: Mapping[str, Any],
  own: Mapping[str, Any],
  lines: Mapping[int, Any],
  hosts: Mapping[int, str],
) -> str:
  process, host = message["process"], message["host"]
  if message["count"] != own["count"]:
    return (
      f"expected the same number of processes on all, found {own['count']} on"
      f" process 0 ({own['host']}) and {message['count']} on process"
      f" {process} ({host}). Set --num_processes alike."
    )
  if process == 0 or process in lines:
    return (
      f"expected process ids from 0 to {own['count'] - 1}, each once, found"
      f" {process} on {hosts[process]} and on {host}. Set --process_id."
    )
  return ""


def _call(
  host: str,
  port: int,
  hello: dict[str, Any],
  deadline: float,
  start_timeout: float,
) -> tuple["_Line", list[str]]:
  """Comes to process 0 and waits until it has all."""
  while time.monotonic() < deadline:
    try:
      line = _Line(socket.create_connection((host, port), timeout=5))
    except OSError:
      time.sleep(_RETRY_SECONDS)
      continue
    try:
      line.socket.settimeout(None)  # from here on process 0 keeps the time
      line.keep_alive(start_timeout)
      line.send(hello)
      while not (messages := line.receive()):
        pass
    except (OSError, ValueError):
      # It started again, or is what an earlier run left behind.
      line.close()
      time.sleep(_RETRY_SECONDS)
      continue
    if "refused" in messages[0]:
      line.close()
      raise HostsError(messages[0]["refused"])
    line.early = messages[1:]
    return line, messages[0]["names"]
  raise HostsError(
    f"expected process 0 at {host}:{port} within {start_timeout:g} s, found"
    " nobody. Look at its log; start all processes with the same"
    " --coordinator_address."
  )


class _Line:
  """A connection that carries messages, one a line.

  Attributes:
    socket: the connection.
    early: messages that came before there was a `Hosts` to take them in.
  """

  def __init__(self, connection: socket.socket) -> None:
    self.socket = connection
    self.early: list[dict[str, Any]] = []
    self._rest = b""
    self._sending = threading.Lock()

  def fileno(self) -> int:
    """For `select`."""
    return self.socket.fileno()

  def send(self, message: dict[str, Any]) -> None:
    """Sends a message; nothing if the other end is gone, as `receive` says."""
    with self._sending, contextlib.suppress(OSError):
      self.socket.sendall(json.dumps(message).encode() + b"\n")

  def receive(self) -> list[dict[str, Any]]:
    """Returns the messages that have come, waiting for something to come.

    Raises:
      OSError: if the other end is gone.
      ValueError: if it is not one of ours.
    """
    data = self.socket.recv(1 << 16)
    if not data:
      raise ConnectionResetError
    *whole, self._rest = (self._rest + data).split(b"\n")
    return [json.loads(text) for text in whole]

  def ended(self) -> bool:
    """Whether the other end has hung up, and said nothing more before."""
    try:
      flags = socket.MSG_PEEK | socket.MSG_DONTWAIT
      return not self.socket.recv(1, flags)
    except BlockingIOError:
      return False
    except OSError:
      return True

  def close(self) -> None:
    """Hangs up."""
    self.socket.close()

  def keep_alive(self, timeout: float) -> None:
    """Lets the kernel ask a silent machine, and give up after `timeout` s."""
    self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    unit = max(1, int(timeout / 4))
    for name, value in (
      ("TCP_KEEPIDLE", unit),
      ("TCP_KEEPINTVL", unit),
      ("TCP_KEEPCNT", 3),
      ("TCP_USER_TIMEOUT", int(timeout * 1000)),
    ):
      if hasattr(socket, name):  # these are Linux's
        self.socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _named(processes: Sequence[int], names: Sequence[str]) -> str:
  each = [
    f"{i} ({names[i]})" if i < len(names) and names[i] else f"{i}"
    for i in processes
  ]
  return f"process{'es' if len(each) > 1 else ''} {', '.join(each)}"


def _known_names(count: int) -> list[str]:
  """Returns the machines of a TPU slice, which has their names."""
  names = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
  return names if len(names) == count else []


def _late(seconds: float, missing: str, there: str = "") -> str:
  found = f" Found {there}." if there else ""
  return (
    f"expected all processes within {seconds:g} s, found no {missing}.{found}"
    " Look at the log of what is missing; --start_timeout waits longer."
  )


def _end() -> None:
  """Ends the process: JAX would wait for processes that are gone."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(1)
