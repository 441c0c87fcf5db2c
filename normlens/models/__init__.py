"""Small networks to look at: every one takes ``norm=`` (a name, a layer or None) and where it stands."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "blocks",
        "cnn",
        "few_shot",
        "mlp",
        "normalization",
        "quaternion_autoencoder",
        "recurrence",
        "residual",
        "resnet",
        "rnn",
        "shapes",
        "transformer",
        "weight_layers",
    ],
    submod_attrs={"cnn": ["CNN"], "mlp": ["MLP"], "resnet": ["ResNet"], "rnn": ["RNN"], "transformer": ["Transformer"]},
)
