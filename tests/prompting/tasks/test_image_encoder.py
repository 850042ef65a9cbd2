"""Features of images by tiny random ViT and CLIP models, without torchvision."""

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPVisionModel, ViTConfig, ViTModel

pytest.importorskip("PIL")

from PIL import Image
from transformers import CLIPImageProcessorPil, ViTImageProcessorPil

from hfdataopt.errors import DataError, OptionError
from hfdataopt.prompting.tasks.image_encoder import ImageEncoder
from hfdataopt.prompting.tasks.text_to_image import render

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
TEXTS = ["a red circle", "a blue square on green", "three yellow stars", "a huge cross", "nothing"]


def vit():
    torch.manual_seed(0)
    model = ViTModel(ViTConfig(**SMALL, image_size=32, patch_size=8))
    return model, ViTImageProcessorPil(size={"height": 32, "width": 32})


def clip():
    torch.manual_seed(0)
    text = {**SMALL, "vocab_size": 20, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = CLIPConfig(text_config=text, vision_config={**SMALL, "image_size": 32, "patch_size": 8}, projection_dim=8)
    size = {"shortest_edge": 32}
    return CLIPModel(config), CLIPImageProcessorPil(size=size, crop_size={"height": 32, "width": 32})


@pytest.fixture
def images():
    return [render(text) for text in TEXTS]


@pytest.mark.parametrize(("make", "width"), [(vit, 16), (clip, 8)])
def test_from_a_folder_and_live(tmp_path, images, make, width):
    model, processor = make()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = ImageEncoder(str(tmp_path), device="cpu")
    assert type(loaded.processor).__name__.endswith("Pil")
    vectors = loaded(images)
    assert vectors.shape == (5, width)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    model.train()
    live = ImageEncoder(model, processor, batch_size=2)
    assert np.allclose(live(images), vectors, atol=1e-5)
    assert model.training
    assert live([]).shape[0] == 0


def test_what_is_read(images):
    model, processor = vit()
    pixels = processor(images=images, return_tensors="pt")["pixel_values"]
    wanted = model.eval()(pixel_values=pixels).pooler_output.detach()
    assert np.allclose(ImageEncoder(model, processor, normalise=False)(images), wanted, atol=1e-5)
    # the processor agrees with resizing and scaling by hand
    by_hand = np.asarray(images[0].resize((32, 32), Image.Resampling.BILINEAR), dtype=float) / 127.5 - 1
    assert np.allclose(pixels[0].permute(1, 2, 0), by_hand, atol=1e-5)
    model, processor = clip()
    pixels = processor(images=images, return_tensors="pt")["pixel_values"]
    pooled = model.eval().vision_model(pixel_values=pixels).pooler_output
    wanted = model.visual_projection(pooled).detach()
    assert np.allclose(ImageEncoder(model, processor, normalise=False)(images), wanted, atol=1e-5)
    vision = CLIPVisionModel(model.config.vision_config)
    assert ImageEncoder(vision, processor)(images).shape == (5, 16)
    model = ViTModel(ViTConfig(**SMALL, image_size=32, patch_size=8), add_pooling_layer=False)
    pixels = vit()[1](images=images, return_tensors="pt")["pixel_values"]
    wanted = model.eval()(pixel_values=pixels).last_hidden_state.mean(dim=1).detach()
    assert np.allclose(ImageEncoder(model, vit()[1], normalise=False)(images), wanted, atol=1e-5)


def test_other_modes_of_images(images):
    encode = ImageEncoder(*vit())
    assert np.allclose(encode([images[0].convert("RGBA")]), encode(images[:1]), atol=1e-5)
    assert encode([images[0].convert("L"), Image.new("1", (5, 9))]).shape == (2, 16)


def test_bad_arguments(tmp_path, images):
    model, processor = vit()
    with pytest.raises(OptionError, match="processor= is needed"):
        ImageEncoder(model)
    with pytest.raises(OptionError, match="AutoModel cannot load"):
        ImageEncoder(str(tmp_path))
    with pytest.raises(OptionError, match="must be an id"):
        ImageEncoder(3, processor)
    with pytest.raises(OptionError, match="batch_size=0"):
        ImageEncoder(model, processor, batch_size=0)
    with pytest.raises(DataError, match="image 1 is str"):
        ImageEncoder(model, processor)([images[0], "x"])
    with torch.no_grad():
        model.layernorm.weight.fill_(torch.nan)
    with pytest.raises(DataError, match="image 0 are not finite"):
        ImageEncoder(model, processor)(images)
