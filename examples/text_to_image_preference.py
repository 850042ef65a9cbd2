"""Find the text that draws the picture someone has in mind, who can only say which of two pictures is closer.

The stand-in for a diffusion model is a renderer of simple scenes; ``hfdataopt.generation.images`` takes a pipeline of diffusers
or any function of a text. The search sees pictures through its own features, never the person's. Needs Pillow
(``pip install 'hfdataopt[images]'``); offline, seconds.
"""

import argparse
from pathlib import Path

from hfdataopt import PromptConfig, PromptTrainer
from hfdataopt.generation.images import CallableImages
from hfdataopt.prompting.judges import SimulatedJudge
from hfdataopt.prompting.tasks import text_to_image

parser = argparse.ArgumentParser()
parser.add_argument("--output_dir", default="text-to-image", help="pictures, votes and the result go here")
parser.add_argument("--votes", type=int, default=60)
arguments = parser.parse_args()

target = "a large red circle left of a small blue square on a green background"
user = text_to_image.SimulatedUser(target)  # has the picture in mind, and reads others pixel by pixel


def closeness(completions, **kwargs):
    return [user.score(image) for image in completions]


trainer = PromptTrainer(
    "apohf",
    model=CallableImages(text_to_image.render),  # or DiffusersImages("stabilityai/sdxl-turbo")
    judge=SimulatedJudge(closeness, scale=10.0),
    encoder=text_to_image.image_features,
    train_dataset=[{"prompt": ""}],  # the instruction is all of the text
    args=PromptConfig(
        output_dir=arguments.output_dir,
        max_judge_calls=arguments.votes,
        items=1,
        optimizer_options={"pool": text_to_image.descriptions(target, 100), "features": "image"},
        logging_steps=10,
    ),
)
result = trainer.train()
print(result)
found = text_to_image.render(trainer.best_prompt)
found.save(Path(arguments.output_dir) / "best.png")
scores = sorted(user.score(text_to_image.render(text)) for text in trainer.optimizer.pool)
print(
    f"closeness {user.score(found):.2f}; of the pool's texts the mean is {sum(scores) / len(scores):.2f}, the best {scores[-1]:.2f}"
)
