"""The peer of `train_step.py`: transformers and PEFT, one step per request.

Reads requests from standard input and answers each on standard output, both one
JSON object a line: first the sizes and the tokens, then `{"method": ...}` to
build a model and `{"step": 1}` to do a step.

The model is built as PEFT's users build it: the library's default attention
(scaled_dot_product_attention), eager mode, PyTorch's fused AdamW. Threads: one
per core. On a GPU if torch has one. In bfloat16 the whole backbone is bfloat16
and PEFT keeps its adapters in float32.
"""

import json
import os
import sys
import time
from typing import Any

import peft
import torch
import transformers

_TARGETS = {"ia3": ["k", "v", "wo"], "lora": ["q", "v"]}


class Worker:
  """One fixed batch, and the model that is trained on it."""

  def __init__(self, setup: dict[str, Any]) -> None:
    self._shapes = setup["shapes"]
    self._dtype = getattr(torch, setup["dtype"])
    self._learning_rate = setup["learning_rate"]
    self._device = "cuda" if torch.cuda.is_available() else "cpu"
    inputs = torch.tensor(setup["tokens"]["inputs"], device=self._device)
    self._batch = {
      "input_ids": inputs,
      "attention_mask": torch.ones_like(inputs),
      "labels": torch.tensor(setup["tokens"]["targets"], device=self._device),
    }
    self._model = self._tx = None

  def build(self, method: str) -> int:
    """Makes model and optimizer; returns the number of trained parameters."""
    self._model = self._tx = None  # Frees the last one's memory first.
    shapes = self._shapes
    config = transformers.T5Config(
      vocab_size=shapes["vocab"],
      d_model=shapes["d_model"],
      d_kv=shapes["head_dim"],
      d_ff=shapes["d_ff"],
      num_layers=shapes["num_layers"],
      num_decoder_layers=shapes["num_layers"],
      num_heads=shapes["num_heads"],
      dropout_rate=0.0,
      feed_forward_proj="gated-gelu",
      tie_word_embeddings=False,
      use_cache=False,
      decoder_start_token_id=0,
    )
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(config)
    # transformers 5 ties the output layer to the embedding whatever the
    # configuration says; T5 1.1 has two matrices.
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
    model = model.to(self._device, self._dtype)
    if method != "full":
      model = peft.get_peft_model(model, self._adapter(method))
    self._model = model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    self._tx = torch.optim.AdamW(
      trained, lr=self._learning_rate, weight_decay=0.0, fused=True
    )
    return sum(p.numel() for p in trained)

  def _adapter(self, method: str) -> peft.PeftConfig:
    """Returns PEFT's configuration of a method."""
    task = peft.TaskType.SEQ_2_SEQ_LM
    if method == "ia3":
      return peft.IA3Config(
        task_type=task,
        target_modules=_TARGETS[method],
        feedforward_modules=["wo"],
      )
    rank = self._shapes["rank"]
    return peft.LoraConfig(
      task_type=task,
      target_modules=_TARGETS[method],
      r=rank,
      lora_alpha=rank,
      lora_dropout=0.0,
    )

  def step(self) -> float:
    """Does one step; returns its seconds."""
    self._wait()
    start = time.perf_counter()
    self._model(**self._batch).loss.backward()
    self._tx.step()
    self._tx.zero_grad(set_to_none=True)
    self._wait()
    return time.perf_counter() - start

  def _wait(self) -> None:
    """Waits for what the GPU still has to do."""
    if self._device == "cuda":
      torch.cuda.synchronize()


def serve() -> None:
  """Answers requests until standard input ends."""
  # Only answers may reach the other side: all other output goes to stderr.
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  worker = None
  last_wall, last_cpu = time.perf_counter(), time.process_time()
  for line in sys.stdin:
    idle = time.process_time() - last_cpu
    idle /= time.perf_counter() - last_wall
    request, answer = json.loads(line), {"idle_cpu": idle}
    if "shapes" in request:
      worker = Worker(request)
    elif "method" in request:
      answer["trained"] = worker.build(request["method"])
    else:
      answer["seconds"] = worker.step()
    last_wall, last_cpu = time.perf_counter(), time.process_time()
    print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
  serve()
