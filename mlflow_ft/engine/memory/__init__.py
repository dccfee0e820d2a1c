"""How much memory a training needs, by parts, from the base's config.json alone: no weight is read.

    from mlflow_ft.engine.memory.configured import setting_of
    from mlflow_ft.engine.memory.estimating import estimate
    from mlflow_ft.engine.memory.values import Setting

    needs = estimate(Setting(model=folder, adapter=LoraConfig(r=16, target_modules="all-linear"), batch=4, length=512))
    needs.peak                     # bytes on each device, in the phase that needs the most
    needs.phase                    # "training", "evaluation" or "merge"
    needs["training"].parts        # {"weights": ..., "adapter": ..., "gradients": ..., "activations": ..., ...}
    needs.activations              # what the layers keep for the backward pass, by kind of layer

`setting_of(config, registry, base)` makes the setting of a configuration. `estimate` raises `UnsuitedError` if the
model cannot be built without weights.
"""
