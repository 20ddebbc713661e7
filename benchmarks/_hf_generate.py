"""The peer of `generate.py`: Hugging Face's greedy `generate`.

Reads requests from standard input and answers each on standard output, one JSON
object a line: first the sizes and the tokens, then `{"run": 1}`, each answered
by its seconds. Caches are on, as its users have them.
"""

import json
import os
import sys
import time
from typing import Any

import torch
import transformers


def build(setup: dict[str, Any]) -> Any:
  """Returns a model of the given sizes with random weights."""
  shapes = setup["shapes"]
  torch.manual_seed(0)
  if setup["architecture"] == "t5":
    config = transformers.T5Config(
      vocab_size=shapes["vocab"],
      d_model=shapes["d_model"],
      d_kv=shapes["head_dim"],
      d_ff=shapes["d_ff"],
      num_layers=shapes["num_layers"],
      num_heads=shapes["num_heads"],
      feed_forward_proj="gated-gelu",
      decoder_start_token_id=0,
      pad_token_id=0,
      eos_token_id=None,
    )
    return transformers.T5ForConditionalGeneration(config).eval()
  config = transformers.LlamaConfig(
    vocab_size=shapes["vocab"],
    hidden_size=shapes["d_model"],
    head_dim=shapes["head_dim"],
    intermediate_size=shapes["d_ff"],
    num_hidden_layers=shapes["num_layers"],
    num_attention_heads=shapes["num_heads"],
    num_key_value_heads=shapes["num_kv_heads"],
    pad_token_id=0,
    eos_token_id=None,
    bos_token_id=None,
  )
  return transformers.LlamaForCausalLM(config).eval()


def main() -> None:
  """Answers requests until there are none."""
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  transformers.logging.set_verbosity_error()
  setup = json.loads(sys.stdin.readline())
  model = build(setup)
  model.generation_config.eos_token_id = None
  tokens = torch.tensor(setup["tokens"])
  print(json.dumps({"ready": torch.__version__}), flush=True)
  for line in sys.stdin:
    del line
    start = time.perf_counter()
    with torch.no_grad():
      found = model.generate(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=setup["new_tokens"],
        min_new_tokens=setup["new_tokens"],
        do_sample=False,
        num_beams=1,
      )
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "shape": found.shape}), flush=True)


if __name__ == "__main__":
  main()
