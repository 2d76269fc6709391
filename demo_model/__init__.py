"""How the demo model of the package was made: `python -m demo_model --help`, from the repository's root.

`processor` and `model` are the standard LLaVA classes of transformers; `batches`, `objective`, `optimization` and `training`
train them on what `foveate.demo` draws and asks; `release` and `examples` write the package data. Nothing here is installed.
"""
