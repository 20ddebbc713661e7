"""train, check, plan and quickstart."""

from typing import Any

from peft_jax.cli import settings


def train(args: Any) -> None:
  """Trains an adapter, or one for each seed."""
  with _joined(args) as processes:
    if args.require:
      from peft_jax import doctor

      doctor.require_platform(args.require)
    from peft_jax.train import loop

    resolved = settings.resolve(args)
    if args.seeds is not None:
      return _train_seeds(args, resolved.config.model_dir, processes)
    summary = loop.train(resolved, processes)
  for task, metrics in summary.adapted_metrics.items():
    before = summary.frozen_metrics.get(task, {})
    for name, value in metrics.items():
      start = f" (frozen {before[name]:.2f})" if name in before else ""
      loop.note(f"{task} {name} {value:.2f}{start}")
  loop.note(f"report: {resolved.config.model_dir}/report.html")


def _train_seeds(args: Any, model_dir: str, processes: Any) -> None:
  from peft_jax.train import config, loop, seeds

  numbers = seeds.parse(args.seeds)
  if any(b.split("=")[0].strip() == "RANDOM_SEED" for b in args.bindings):
    raise config.ConfigError(
      "expected RANDOM_SEED from --seeds alone, found it in --gin.RANDOM_SEED"
      " too. Leave one of them out."
    )
  given = list(args.bindings)

  def resolve(seed: int) -> Any:
    args.bindings = [*given, *seeds.bindings_of(model_dir, seed)]
    return settings.resolve(args)

  done = seeds.train(model_dir, numbers, resolve, processes)
  loop.note(seeds.format_spread(done))


def _joined(args: Any) -> Any:
  """Returns the processes of the run; the workers of a slice find them."""
  from peft_jax import doctor
  from peft_jax.train import hosts

  told = (args.coordinator_address, args.num_processes, args.process_id)
  if told == (None, None, None) and not (
    args.require == "tpu" and doctor.has_tpu()
  ):
    return hosts.ALONE
  return hosts.join(
    *told, start_timeout=args.start_timeout, host_timeout=args.host_timeout
  )


def check(args: Any) -> None:
  """Prints what would be trained, on which examples."""
  from peft_jax import partition, sharding
  from peft_jax.inject import Adapted
  from peft_jax.train import data, run_dir
  from peft_jax.train.setup import shapes_of

  resolved = settings.resolve(args)
  config = resolved.config
  model = Adapted(config.network, config.rules)
  params = shapes_of(model)["params"]
  print(partition.format_rule_table(partition.rule_table(params, model)))
  counts = partition.counts(params, model)
  print(
    f"trained {counts['trained_parameters']:,} of"
    f" {counts['all_parameters']:,} parameters ({100 * counts['share']:.3f} %)"
  )
  mesh = sharding.make_mesh(model=config.model_parallel)
  sharding.check_batch(
    config.batch_size, mesh=mesh, micro_batches=config.micro_batches
  )
  resuming = run_dir.check(resolved)
  print(f"{config.model_dir}: {'resumes' if resuming else 'a new run'}")
  task = data.get_task(config)
  found = data.measure_lengths(task, config.task_feature_lengths)
  for name, allowed in config.task_feature_lengths.items():
    print(
      f"{task.name} {name}: longest {found.longest[name]} tokens of {allowed}"
      f" allowed, {found.cut[name]} of {found.examples} examples cut"
      f" ({100 * found.cut[name] / max(1, found.examples):.1f} %)"
    )
  if not config.allow_cut_targets:
    data.check_targets(task, config.task_feature_lengths)
  if not config.backbone:
    raise ValueError("expected a backbone, found none. Pass --backbone DIR.")
  print("ok")


def plan(args: Any) -> int:
  """Prints what a run needs of a device."""
  from peft_jax.plan import command

  return command.run(args, lambda: settings.resolve(args).config)


def quickstart(args: Any) -> int:
  """Adapts the model that ships."""
  from peft_jax.train import quickstart

  return quickstart.run(args.model_dir, args.bindings)
