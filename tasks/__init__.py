"""SeqIO tasks; importing this registers the ones over public data.

In a T5X gin file: `MIXTURE_OR_TASK_MODULE = "peft_jax.tasks"`. Nothing is read
or downloaded before a task is used.

Users' own files: `jsonl.register`. The official files of a benchmark:
`superglue.register`, `glue.register`, `mrqa.register`, `raft.register`.
"""

from peft_jax.tasks import glue as glue
from peft_jax.tasks import jsonl as jsonl
from peft_jax.tasks import metrics as metrics
from peft_jax.tasks import mrqa as mrqa
from peft_jax.tasks import preprocessors as preprocessors
from peft_jax.tasks import raft as raft
from peft_jax.tasks import raft_submission as raft_submission
from peft_jax.tasks import sources as sources
from peft_jax.tasks import superglue as superglue
from peft_jax.tasks import vocabularies as vocabularies
from peft_jax.tasks.metrics import MetricError as MetricError
from peft_jax.tasks.sources import DataError as DataError
from peft_jax.tasks.sources import JsonLinesSource as JsonLinesSource
from peft_jax.tasks.sources import Label as Label
from peft_jax.tasks.vocabularies import VocabularyError as VocabularyError
