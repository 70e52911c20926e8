"""The names of a lens on disk, for readers that need no torch."""

LADDER = "ladder"  # folder beside a lens: smaller lenses of the same form, each in a folder named after its kind
WEIGHTS = "weights.safetensors"
TENSORS = ("U", "V", "c", "log_tau", "scale")

PRISM = "prism.safetensors"
PRISM_TENSORS = ("mean", "inv_scale", "rotation")
