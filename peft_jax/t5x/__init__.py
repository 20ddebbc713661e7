"""T5X jobs that train adapters: what T5X lets gin put in its places.

T5X itself stays as it is; `python -m t5x.train` runs its own loop with its own
model classes. Six of its places are filled from here:

    model.module           inject.Adapted around one of `networks`
    model.optimizer_def    `optimizer`: the adapter's leaves and no others
    checkpointer_cls       `checkpointer`: the adapter alone, strict
    trainer_cls            `trainer`: says what it trains; SIGTERM
    model_dir              `hosts`: its processes meet and agree
    get_dataset_fn         `data`: the same batches however often it restarts

The only package that imports T5X. The gin files `models/t5x_*.gin` and
`runs/t5x_*.gin` put it together.
"""
