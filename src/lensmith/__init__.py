"""Tuned lenses, declared."""

import logging

# transformers imports torchao wherever it is installed, and at each start that tells which of its GPU kernels are not
# for this machine.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
