import logging

# transformers imports torchao where it is installed, which then logs each GPU kernel that this machine cannot use.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
