"""The demo's prompt part: a better instruction for the small follower, within a budget of calls."""

from pathlib import Path

from hfdataopt.demo import follower_tasks

TASK = "french"
BEFORE = "show the word in french."
CALLS = 400


def find_prompt(folder: str | Path, *, seed: int = 0, smoke: bool = False) -> None:
    """Search, and print what was found with its accuracy on inputs that the search has not seen."""
    from hfdataopt.generation import LocalGenerator
    from hfdataopt.prompting.apply import ApplyPrompt
    from hfdataopt.prompting.config import PromptConfig
    from hfdataopt.prompting.trainer import PromptTrainer

    model, tokenizer = follower_tasks.load_follower()
    rows, fresh = follower_tasks.rows(TASK, "train"), follower_tasks.rows(TASK, "test")
    calls = 60 if smoke else CALLS
    print(f"\nA better prompt for a small model that follows instructions, within {calls} calls; now: {BEFORE!r}")
    generator = LocalGenerator(model, tokenizer, max_new_tokens=12, temperature=0.0)
    trainer = PromptTrainer(
        "ape",
        model=generator,
        reward_funcs=follower_tasks.exact_match,
        train_dataset=rows,
        eval_dataset=fresh,
        args=PromptConfig(
            output_dir=str(Path(folder) / "prompt"),
            seed=seed,
            items=10 if smoke else 20,
            max_calls=calls,
            start=[BEFORE],
            proposer_max_new_tokens=60,
            leaders=0,
            logging_steps=0,
            resume_from_checkpoint=False,
        ),
    )
    result = trainer.train()

    def accuracy(prompt: ApplyPrompt) -> float:
        prompts = fresh.map(prompt)["prompt"]
        answers = generator.generate(list(prompts), 1, keys=list(range(len(fresh))))
        rewards = follower_tasks.exact_match([one.text for (one,) in answers], list(fresh["answer"]))
        return sum(rewards) / len(rewards)

    tried = len({trial.candidate.key for trial in result.trials})
    print(f"Tried {tried} instructions with {result.spent['calls']:g} calls. Accuracy on {len(fresh)} inputs not seen:")
    print(f"  before  {accuracy(ApplyPrompt(BEFORE)):.2f}  {BEFORE!r}")
    print(f"  found   {accuracy(trainer.apply_prompt):.2f}  {trainer.best_prompt!r}")
    print(
        f"It is in {Path(folder) / 'prompt' / 'prompt.json'}; dataset.map(ApplyPrompt.load(...)) puts it into a dataset."
    )
