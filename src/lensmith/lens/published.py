"""A lens that others published, as a lens of ours: of the package tuned-lens (`tuned_lens`) or a Jacobian lens."""

from typing import Any

from lensmith.hub.pins import LENS_MAPS, REPACK, LensPin, lens_folder
from lensmith.lens import jacobian_lens, tuned_lens
from lensmith.lens.lens import Lens
from lensmith.process.errors import IntegrityError, LensmithError
from lensmith.source.backbone import Backbone

UNREAD = "Nothing was imported."


def load(pin: LensPin | None, backbone: Backbone) -> tuple[Lens, dict[str, Any]]:
    """The lens of a pin, and where it comes from, for its provenance.

    Raises:
        InputError: not a linear lens of tuned-lens, or a Jacobian lens without a map.
        IntegrityError: a file is broken or changed, the lens is another model's, or prefetch pinned none.
        NumericError: a number is not finite.
    """
    if pin is None:
        raise IntegrityError(f"fit.kind is imported, but the corpus has no pinned lens. {REPACK} {UNREAD}")
    folder, read = lens_folder(pin), jacobian_lens.read if LENS_MAPS in pin.files else tuned_lens.read
    try:
        lens, origin = read(folder, backbone)
    except LensmithError as error:
        raise type(error)(f"imported lens {pin.place}: {error}. {UNREAD}") from None
    return lens, pin.model_dump(mode="json") | origin
