"""Small networks to look at: every classifier takes ``norm=`` (a name, a layer or None) and its place."""

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
    submod_attrs={
        "cnn": ["CNN"],
        "few_shot": ["Episode", "draw_episode", "episode_accuracy", "episode_loss"],
        "mlp": ["MLP"],
        "quaternion_autoencoder": ["CAE", "QCAE", "as_quaternions", "chroma"],
        "resnet": ["ResNet"],
        "rnn": ["RNN"],
        "transformer": ["Transformer"],
    },
)
