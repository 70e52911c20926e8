"""The names of a lens on disk, for readers that need no torch."""

WEIGHTS = "weights.safetensors"
TENSORS = ("U", "V", "c", "log_tau", "scale")

LADDER = "ladder"  # folder of the smaller kinds, beside the lens
PRISM = "prism.safetensors"
PRISM_TENSORS = ("mean", "inv_scale", "rotation")
