"""Images of texts: from functions, from a stand-in with the call of a pipeline, and from a tiny random pipeline of diffusers."""

import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hfdataopt.errors import DataError, GenerationError, MissingDependencyError, OptionError
from hfdataopt.generation import (
    CallableImages,
    DiffusersImages,
    ImageCompletion,
    ImageGenerator,
    Refused,
    as_image_generator,
)

TEXTS = ["a red ball", "two blue boxes", "a red ball"]
KEYS = ["a", "b", "c"]


def picture(text: str, seed: int) -> Any:
    return Image.new("RGB", (4, 3), (len(text), seed % 256, seed // 256 % 256))


def plain(text: str) -> Any:
    return picture(text, 0)


class Output:
    def __init__(self, images: list[Any]):
        self.images = images


class Pipeline:
    """Called as ``StableDiffusionPipeline`` is; the colour tells prompt and noise."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(
        self,
        prompt: Any = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        generator: Any = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Output:
        self.calls.append({"prompt": prompt, "steps": num_inference_steps, "size": (width, height)})
        noise = [int(torch.randint(256, (1,), generator=one)) for one in generator]
        return Output(
            [Image.new("RGB", (width or 8, height or 8), (len(p), n, 0)) for p, n in zip(prompt, noise, strict=True)]
        )


def same(one: Any, other: Any) -> bool:
    return bool(np.array_equal(np.asarray(one), np.asarray(other)))


def test_functions() -> None:
    arrived: dict[tuple[int, int], ImageCompletion] = {}
    found = as_image_generator(picture).draw(TEXTS, keys=KEYS, on_done=lambda i, k, c: arrived.update({(i, k): c}))
    assert [image.getpixel((0, 0))[0] for image in found] == [10, 14, 10]
    assert not same(found[0], found[2])  # other keys
    assert {job: completion.image for job, completion in arrived.items()} == {(i, 0): x for i, x in enumerate(found)}
    again = as_image_generator(picture).draw(TEXTS[::-1], keys=KEYS[::-1])
    assert all(same(one, other) for one, other in zip(found, again[::-1], strict=True))
    assert not same(as_image_generator(picture).draw(TEXTS, keys=KEYS, seed=1)[0], found[0])
    assert as_image_generator(plain).draw(TEXTS, keys=KEYS)[0].size == (4, 3)
    assert as_image_generator(picture).describe() == {"kind": "callable images", "function": "picture"}


def test_a_stand_in_pipeline_in_batches() -> None:
    pipeline = Pipeline()
    made = as_image_generator(pipeline, steps=3, width=6, batch_size=2)
    assert isinstance(made, DiffusersImages)
    found = made.draw(TEXTS, keys=KEYS)
    assert [call["prompt"] for call in pipeline.calls] == [TEXTS[:2], TEXTS[2:]]
    assert {(call["steps"], call["size"]) for call in pipeline.calls} == {(3, (6, None))}
    alone = as_image_generator(Pipeline(), steps=3, width=6).draw(TEXTS, keys=KEYS)
    assert all(same(one, other) for one, other in zip(found, alone, strict=True))
    assert not same(found[0], found[2])
    assert made.describe() == {
        "kind": "diffusers",
        "pipeline": "Pipeline",
        "name": None,
        "num_inference_steps": 3,
        "width": 6,
    }
    with pytest.raises(OptionError, match="Pipeline takes no negative_prompt"):
        as_image_generator(Pipeline(), negative_prompt="ugly")


def test_refusals() -> None:
    for generator in (as_image_generator(picture), as_image_generator(Pipeline(), batch_size=2)):
        asked: list[tuple[int, int]] = []
        arrived: list[int] = []

        def admit(index: int, sample: int, asked: list[tuple[int, int]] = asked) -> bool:
            asked.append((index, sample))
            return index != 1

        def on_done(index: int, sample: int, image: ImageCompletion, arrived: list[int] = arrived) -> None:
            arrived.append(index)

        with pytest.raises(Refused, match="2 completions were made; 1 were left"):
            generator.draw(TEXTS, keys=KEYS, admit=admit, on_done=on_done)
        assert asked == [(0, 0), (1, 0), (2, 0)]
        assert arrived == [0, 2]


def test_what_goes_wrong_is_named() -> None:
    def fails(text: str) -> Any:
        if "two" in text:
            raise RuntimeError("no memory")
        return plain(text)

    arrived: list[int] = []
    with pytest.raises(GenerationError, match="1 of 3 images were drawn; row 'b' failed: RuntimeError: no memory"):
        CallableImages(fails).draw(TEXTS, keys=KEYS, on_done=lambda i, *_: arrived.append(i))
    assert arrived == [0]
    with pytest.raises(DataError, match="the answer to row 'a' is str, not a PIL image"):
        CallableImages(lambda text: text).draw(TEXTS, keys=KEYS)
    with pytest.raises(DataError, match="the prompt of row 'b' must be a text; got 'None'"):
        CallableImages(plain).draw(["x", None], keys=KEYS[:2])  # type: ignore[list-item]
    with pytest.raises(DataError, match="3 keys arrived for 1 prompts"):
        CallableImages(plain).draw(["x"], keys=KEYS)

    async def later(text: str) -> Any: ...

    with pytest.raises(OptionError, match="later is async"):
        CallableImages(later)


def test_what_may_be_handed_over() -> None:
    made = CallableImages(plain)
    assert as_image_generator(made) is made
    assert isinstance(made, ImageGenerator)
    with pytest.raises(OptionError, match="CallableImages takes no options; got steps"):
        as_image_generator(made, steps=3)
    with pytest.raises(OptionError, match="a pipeline has no option 'step'; it accepts: steps, guidance_scale"):
        as_image_generator(Pipeline(), step=3)
    for model in (3, None, CallableImages):
        with pytest.raises(OptionError, match="it takes a hub id or folder, a pipeline of diffusers, or a function"):
            as_image_generator(model)
    with pytest.raises(OptionError, match="function is not a text-to-image pipeline"):
        DiffusersImages(plain)
    with pytest.raises(OptionError, match="batch_size"):
        DiffusersImages(Pipeline(), batch_size=0)


def test_json(tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(60, dtype=np.uint8).reshape(4, 5, 3))
    document = json.loads(json.dumps(ImageCompletion(image, "seen").to_json(tmp_path / "images")))
    assert ImageCompletion(image).to_json(tmp_path / "images")["image"] == document["image"]
    assert [path.name for path in (tmp_path / "images").iterdir()] == [document["image"]]
    back = ImageCompletion.from_json(document, tmp_path / "images")
    assert same(back.image, image)
    assert back.text == "seen"
    outside = {"image": "../secret.png", "text": ""}
    image.save(tmp_path / "secret.png")
    for wrong in ({"text": "x"}, {"image": "none.png", "text": ""}, outside):
        with pytest.raises(DataError, match="a stored image cannot be read"):
            ImageCompletion.from_json(wrong, tmp_path / "images")


def test_without_diffusers_or_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.split(".")[0] in ("diffusers", "PIL"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=r"needs diffusers: pip install 'hfdataopt\[diffusers\]'"):
        as_image_generator("some/pipeline")
    with pytest.raises(MissingDependencyError, match=r"images need pillow: pip install 'hfdataopt\[diffusers\]'"):
        CallableImages(lambda text: None).draw(["x"], keys=[0])


def tiny_diffusion(folder: Path) -> Any:
    """A random Stable Diffusion pipeline of a few thousand weights."""
    diffusers = pytest.importorskip("diffusers", reason="the extra diffusers is not installed")
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = [chr(x) for x in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(f"{x}</w>" for x in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    vocabulary.write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    merges.write_text("#version: 0.2\n")
    torch.manual_seed(0)
    start, end = len(tokens) - 2, len(tokens) - 1
    return diffusers.StableDiffusionPipeline(
        unet=diffusers.UNet2DConditionModel(
            block_out_channels=(4, 8),
            layers_per_block=1,
            sample_size=8,
            norm_num_groups=2,
            in_channels=4,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=8,
            attention_head_dim=2,
        ),
        scheduler=diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False),
        vae=diffusers.AutoencoderKL(
            block_out_channels=[4, 8],
            in_channels=3,
            out_channels=3,
            down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2,
            latent_channels=4,
            norm_num_groups=2,
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokens),
                hidden_size=8,
                intermediate_size=16,
                num_attention_heads=2,
                num_hidden_layers=1,
                bos_token_id=start,
                eos_token_id=end,
                pad_token_id=end,
            )
        ),
        tokenizer=CLIPTokenizer(vocab=str(vocabulary), merges=str(merges), model_max_length=77),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def test_a_real_pipeline_of_diffusers(tmp_path: Path) -> None:
    pipeline = tiny_diffusion(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    options: dict[str, Any] = {"steps": 2, "height": 16, "width": 16, "guidance_scale": 3.0, "negative_prompt": "dull"}
    found = as_image_generator(pipeline, batch_size=3, **options).draw(TEXTS, keys=KEYS)
    assert all(image.size == (16, 16) and image.mode == "RGB" for image in found)
    assert not same(found[0], found[2])
    state = torch.random.get_rng_state()
    alone = as_image_generator(pipeline, **options).draw(TEXTS, keys=KEYS)
    assert torch.equal(state, torch.random.get_rng_state())
    for one, other in zip(found, alone, strict=True):  # rounding differs between batches
        assert np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max() <= 2
    pipeline.save_pretrained(tmp_path / "pipeline")
    loaded = as_image_generator(str(tmp_path / "pipeline"), **options)
    assert all(same(one, other) for one, other in zip(loaded.draw(TEXTS, keys=KEYS), alone, strict=True))
    assert loaded.describe()["pipeline"] == "StableDiffusionPipeline"
    with pytest.raises(OptionError, match="diffusers cannot load"):
        as_image_generator(str(tmp_path / "nothing"))
