"""Costs beside the figures of T-Few's paper (section 4.2, table 1)."""

import dataclasses
import json

import pytest

from peft_jax import cli, cost
from peft_jax.networks import CONFIGS


def test_the_prompts_of_gpt3(capsys):
  """32 examples of 512 tokens: 144 GiB of keys and values."""
  argv = ["cost", "--model=gpt3_175b", "--shots=32"]
  assert cli.main([*argv, "--tokens-per-example=512", "--json"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert found["in_context"]["cached_bytes"] == 144 * 2**30
  assert "adapter" not in found
  # 41 examples of 98 tokens and a query of 103: 1.4e15.
  argv = ["cost", "--model=gpt3_175b", "--shots=41", "--query-tokens=103"]
  assert cli.main([*argv, "--tokens-per-example=98", "--json"]) == 0
  found = json.loads(capsys.readouterr().out)
  flops = found["in_context"]["flops_per_prediction"]
  assert f"{flops:.1e}" == "1.4e+15"


def test_tfew_of_11_billion(capsys):
  """1.1e12 FLOPs for a prediction, 2.7e16 for training, 4.2 MB."""
  argv = ["cost", "--model=t5_1_1_xxl", "--adapter=ia3", "--query-tokens=103"]
  argv += ["--shots=32", "--tokens-per-example=98", "--steps=1000"]
  assert cli.main([*argv, "--batch=8", "--json"]) == 0
  found = json.loads(capsys.readouterr().out)["adapter"]
  assert f"{found['flops_per_prediction']:.1e}" == "1.1e+12"
  # The paper has 11 billion parameters, this network 11.14.
  assert found["training_flops"] == pytest.approx(2.7e16, rel=0.03)
  assert found["storage_bytes"] == 4 * 1_081_344
  assert cli.main(argv) == 0
  out = capsys.readouterr().out
  # Three times 8,000 queries of 103 tokens, against 32 x 98 tokens saved.
  assert "saved after 789 predictions" in out and "GiB" in out


def test_grouped_queries_keep_less():
  config = CONFIGS["llama_7b"]
  arguments = dict(shots=1, tokens_per_example=10, query_tokens=1)
  all_heads = cost.in_context(config, 1, **arguments)
  grouped = dataclasses.replace(config, num_kv_heads=8)
  few = cost.in_context(grouped, 1, **arguments)
  assert all_heads.cached_bytes == 4 * few.cached_bytes


def test_no_prompt_never_breaks_even():
  config = CONFIGS["tiny"]
  prompt = cost.in_context(
    config, 10, shots=0, tokens_per_example=1, query_tokens=3
  )
  found = cost.adapter(
    config,
    10,
    adapter_bytes=1,
    query_tokens=3,
    steps=1,
    batch_size=1,
    against=prompt,
  )
  assert found.predictions_to_break_even is None


def test_numbers_that_make_no_sense(capsys):
  argv = ["cost", "--model=tiny", "--shots=-1", "--tokens-per-example=5"]
  assert cli.main(argv) == 1
  assert "expected --shots >= 0, found -1" in capsys.readouterr().err
