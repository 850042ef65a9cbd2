"""Images as vectors, by a vision model of transformers such as CLIP or ViT."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from hfdataopt.errors import DataError, OptionError
from hfdataopt.prompting.tasks.files import pillow

WHO = "ImageEncoder"


class ImageEncoder:
    """Features of PIL images: CLIP's image features, else the model's pooled output, else the mean over places.

    Args:
        model: hub id or folder of a model that :class:`transformers.AutoModel` loads, or a live one, left as it was.
        processor: its image processor; by default that of the same id or folder, the one that needs no torchvision.
        batch_size: images of one forward pass.
        normalise: every vector gets length 1, so that inner products are cosines.
        device: of a model that is loaded; None takes the GPU where there is one. A live model stays where it is.

    Raises:
        OptionError: the model or its processor cannot be loaded, or is none.
    """

    def __init__(
        self,
        model: Any,
        processor: Any = None,
        *,
        batch_size: int = 16,
        normalise: bool = True,
        device: str | None = None,
    ) -> None:
        pillow(WHO)
        if batch_size < 1:
            raise OptionError(f"{WHO}: batch_size={batch_size} must be at least 1")
        self.batch_size, self.normalise = batch_size, normalise
        named = isinstance(model, str | os.PathLike)
        if processor is None and not named:
            raise OptionError(f"{WHO}: processor= is needed beside a live model; give its image processor")
        self.model = _loaded("AutoModel", model) if named else model
        self.processor = _loaded("AutoImageProcessor", model, backend="pil") if processor is None else processor
        if not isinstance(self.model, torch.nn.Module) or not callable(self.processor):
            raise OptionError(
                f"{WHO}: model={model!r:.80} must be an id, a folder or a model, and its processor callable"
            )
        if named:
            self.model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            self.model.eval()

    def __call__(self, images: Sequence[Any]) -> np.ndarray:
        """``[images, d]`` float32.

        Raises:
            DataError: one is not a PIL image, or has features that are not numbers; its place is named.
        """
        image_class = pillow(WHO).Image.Image
        for place, image in enumerate(images):
            if not isinstance(image, image_class):
                raise DataError(f"{WHO}: image {place} is {type(image).__name__}; it must be a PIL image")
        training = self.model.training
        self.model.eval()
        try:
            parts = [self._features(images[at : at + self.batch_size]) for at in range(0, len(images), self.batch_size)]
        finally:
            self.model.train(training)
        vectors = np.concatenate(parts) if parts else np.zeros((0, 1), dtype=np.float32)
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(bad):
            raise DataError(f"{WHO}: the features of image {bad[0]} are not finite")
        if self.normalise:
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors

    @torch.no_grad()
    def _features(self, images: Sequence[Any]) -> np.ndarray:
        pixels = self.processor(images=[image.convert("RGB") for image in images], return_tensors="pt")["pixel_values"]
        parameter = next(self.model.parameters())
        pixels = pixels.to(device=parameter.device, dtype=parameter.dtype)
        read = getattr(self.model, "get_image_features", None) or self.model
        output = read(pixel_values=pixels)
        if not isinstance(output, torch.Tensor):
            pooled = getattr(output, "pooler_output", None)
            output = output.last_hidden_state if pooled is None else pooled
        if output.dim() > 2:  # [b, places, d], or [b, d, rows, columns]
            output = output.mean(dim=1) if output.dim() == 3 else output.flatten(2).mean(dim=2)
        return output.flatten(1).float().cpu().numpy()


def _loaded(name: str, source: Any, **options: Any) -> Any:
    import transformers

    try:
        return getattr(transformers, name).from_pretrained(source, trust_remote_code=False, **options)
    except Exception as error:
        raise OptionError(
            f"{WHO}: {name} cannot load {str(source)!r} ({type(error).__name__}: {str(error).splitlines()[0]:.200}); give a "
            "folder or a hub id of a vision model, or model= and processor= as objects"
        ) from error
