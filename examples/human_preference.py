"""Find the instruction that people prefer: they see two answers at a time, and nothing else is known.

    python examples/human_preference.py            # a simulated person votes
    python examples/human_preference.py --people   # you do, on a page in the browser (pip install 'hfdataopt[ui]')

With --people the search is kept in ``human-preference/``: stop it at any time and start it again, all votes count.
"""

import argparse
from collections.abc import Sequence

import torch

from hfdataopt import PromptConfig, PromptTrainer
from hfdataopt.demo import follower_tasks


def bag_of_words(texts):
    """Features of instructions; any encoder does, such as a model of sentence-transformers (``encoder="all-MiniLM-L6-v2"``)."""
    table = torch.zeros(len(texts), 512)
    for row, text in enumerate(texts):
        for word in text.lower().replace(".", " ").replace(",", " ").split():
            table[row, sum(ord(letter) * 31**place for place, letter in enumerate(word)) % 512] = 1.0
    return table.numpy()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--people", action="store_true", help="vote yourself")
    parser.add_argument("--votes", type=int, default=50)
    parser.add_argument("--output_dir", help="where the search is kept (with --people: human-preference)")
    parser.add_argument("--smoke", action="store_true", help="some seconds: does it run?")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    model, tokenizer = follower_tasks.load_follower()
    rows = follower_tasks.rows("german", "train")

    if options.people:
        from hfdataopt.prompting.page import WebJudge

        judge = WebJudge(criterion="Which answer is the right German word?")
    else:
        from hfdataopt.prompting.judges import SimulatedJudge

        judge = SimulatedJudge(follower_tasks.exact_match, scale=3.0)  # a right answer is preferred 19 times of 20

    trainer = PromptTrainer(
        "apohf",
        model=model,
        processing_class=tokenizer,
        judge=judge,
        encoder=bag_of_words,
        train_dataset=rows,
        args=PromptConfig(
            output_dir=options.output_dir or ("human-preference" if options.people else None),
            max_judge_calls=12 if options.smoke else options.votes,
            max_new_tokens=12,
            optimizer_options={"pool_size": 10 if options.smoke else 50},
            parallel=2 if options.people else 1,
            logging_steps=0,
        ),
    )
    print(trainer.train())

    # The votes are preference data for DPOTrainer or RewardTrainer.
    pairs = trainer.preferences()
    print(f"\n{len(pairs)} rows of {', '.join(pairs.column_names)}; the first:\n{pairs[0]}")

    if not options.people:
        prompted = follower_tasks.rows("german", "test").map(trainer.apply_prompt)
        answers = trainer.model.generate(list(prompted["prompt"]), 1, keys=list(range(len(prompted))))
        right = follower_tasks.exact_match([one.text for (one,) in answers], list(prompted["answer"]))
        print(f"\nWith the prompt that was found {sum(right):.0f} of {len(right)} answers to other words are right.")


if __name__ == "__main__":
    main()
