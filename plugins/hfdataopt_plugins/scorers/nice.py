"""NICE: influence on a reward that has no gradient, by policy gradients of sampled completions.

The gradient of the expected reward of a query x, with completions y drawn from the model, is
``E[(r(x, y) - b) grad log p(y | x)]`` (Williams 1992); its inner product with the loss gradient of a training row says how a
step on that row changes the reward. NICE (Wang et al., "NICE: Non-differentiable Evaluation Metric-Based Data Selection
for Instruction Tuning", ICML 2025) puts it in the place of the query gradient of LESS (Xia et al. 2024): Adam-preconditioned
training gradients, cosines, summed over checkpoints with their learning rates.

The weight of sample k of K is ``(r_k - b_k) / K`` with ``b_k`` the mean reward of the others (leave-one-out: unbiased, and
without it the scores depend on where the reward's zero lies) or 0, as in the paper.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from hfdataopt.attribution.completions import query_columns, query_prompts, reward_completions, sample_completions
from hfdataopt.attribution.identity import fingerprint
from hfdataopt.attribution.samples import Sample, Samples
from hfdataopt.attribution.scorer import Result
from hfdataopt.attribution.vectors import mean_loss
from hfdataopt.attribution.view import View
from hfdataopt.errors import DataError, OptionError
from hfdataopt.generation import Completion, Generator
from hfdataopt.generation.column import ColumnGenerator
from hfdataopt.generation.endpoint import EndpointGenerator, check_url
from hfdataopt.generation.local import LocalGenerator
from hfdataopt.generation.prompts import completion_ids, prompt_ids
from hfdataopt.hookspecs import hookimpl
from hfdataopt.options import apply_preset, check_range
from hfdataopt.rewards import RewardFunctions
from hfdataopt_plugins.scorers.less import AdamScorer

PAPER = {
    "samples": 20,
    "top_k": 50,
    "top_p": 0.95,
    "baseline": "none",
    "eos": False,
    "precondition": "less",
    "normalize": True,
}
# Options that a source of completions does not read.
LOCAL_ONLY = ["top_k", "generation_batch_size", "stronger_processing_class"]
REMOTE_ONLY = ["api_key", "timeout"]
SAMPLING = ["samples", "max_new_tokens", "temperature", "top_p", "stop"]
SHOWN = 64  # queries whose variance is printed
REFERENCE = "completion"  # the column of reference answers


@dataclass
class PolicyOptions:
    """What makes the policy gradients of the queries.

    Args:
        reward_funcs: what ``GRPOTrainer(reward_funcs=...)`` takes: a reward function (or its name, ``"module:function"``), a
            reward model or its id, or a list.
        reward_weights: a weight per function; 1 each by default.
        reward_processing_classes, reward_formatting_funcs: for reward models; see
            :class:`hfdataopt.rewards.RewardFunctions`.
        samples: completions per query.
        max_new_tokens: the most tokens of a completion.
        temperature, top_k, top_p, stop: of the sampling; anything but 1, 0, 1 and None is off-policy, which is said.
        baseline: ``leave-one-out`` subtracts the mean reward of the query's other completions, ``none`` nothing.
        keep: which completions count: ``all``; ``rejection`` those with a reward above 0; ``hard-rejection`` those at least as
            good as the reference answer in column ``completion``; ``top-k`` the ``keep_best`` best of each query.
        keep_best: of ``keep="top-k"``: completions per query.
        eos: whether the end token, where it was generated, is part of the completion.
        generation_batch_size: sequences that are sampled together; None takes four times the batch size of the gradients.
    """

    reward_funcs: Any = field(default=None, kw_only=True)
    reward_weights: list[float] | None = field(default=None, kw_only=True)
    reward_processing_classes: Any = field(default=None, kw_only=True)
    reward_formatting_funcs: Any = field(default=None, kw_only=True)
    samples: int = field(default=16, kw_only=True)
    max_new_tokens: int = field(default=256, kw_only=True)
    temperature: float = field(default=1.0, kw_only=True)
    top_k: int = field(default=0, kw_only=True)
    top_p: float = field(default=1.0, kw_only=True)
    stop: list[str] | None = field(default=None, kw_only=True)
    baseline: Literal["leave-one-out", "none"] = field(default="leave-one-out", kw_only=True)
    keep: Literal["all", "rejection", "hard-rejection", "top-k"] = field(default="all", kw_only=True)
    keep_best: int = field(default=10, kw_only=True)
    eos: bool = field(default=True, kw_only=True)
    generation_batch_size: int | None = field(default=None, kw_only=True, metadata={"changes_scores": False})

    name: ClassVar[str]
    live: ClassVar[bool] = True  # completions come from the model under study

    def check_policy(self) -> None:
        """Raise for options that cannot work."""
        if self.reward_funcs is None:
            raise OptionError(
                f"{self.name}: reward_funcs= is needed: a reward function as GRPOTrainer takes it, a reward model or its id, "
                "or hfdataopt.reward_from_metric(...)"
            )
        for option in ("samples", "max_new_tokens", "keep_best", "generation_batch_size"):
            check_range(self, option, at_least=1)
        check_range(self, "temperature", at_least=0)
        check_range(self, "top_k", at_least=0)
        check_range(self, "top_p", above=0, at_most=1)
        if self.baseline == "leave-one-out" and self.samples < 2:
            raise OptionError(
                f"{self.name}: baseline='leave-one-out' compares completions of a query, but samples={self.samples}; "
                "take at least 2, or baseline='none'"
            )
        if self.temperature == 0 and self.samples > 1:
            raise OptionError(
                f"{self.name}: temperature=0 always gives the same completion, but samples={self.samples}; raise temperature, or "
                "take samples=1 and baseline='none'"
            )

    def check_prompts(self, view: View) -> None:
        """Raise before training where the rewards, a prompt or the generator cannot work."""
        functions = self.reward_functions(view)
        functions.check_columns(query_columns(view), completion_ids=True)
        functions.load()
        ids: list[Any] = list(view.rows("queries").ids)
        for prompt, row in zip(query_prompts(view), ids, strict=True):
            prompt_ids(prompt, view.processing_class, self.name, row)
        generator = self.generator(view)
        if isinstance(generator, LocalGenerator):
            generator.check(query_prompts(view), ids)
        elif isinstance(generator, ColumnGenerator):
            for of_query, row in zip(_from_column(view, generator), ids, strict=True):
                # raises where a query has too few of them
                policy_weights(np.zeros(len(of_query)), self.baseline, name=f"{self.name}: query {row!r}")
        if self.keep == "hard-rejection":
            self._references(view)

    def reward_functions(self, view: View) -> RewardFunctions:
        """The rewards, made once for all moments of a run."""
        if "rewards" not in view.shared:
            view.shared["rewards"] = RewardFunctions(
                self.reward_funcs,
                reward_weights=self.reward_weights,
                reward_processing_classes=self.reward_processing_classes,
                reward_formatting_funcs=self.reward_formatting_funcs,
                who=self.name,
                batch_size=view.batch_size,
            )
        return view.shared["rewards"]

    def generator(self, view: View) -> Generator | ColumnGenerator:
        """Where the completions come from: the model itself."""
        return LocalGenerator(
            view.model,
            view.processing_class,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            stop=self.stop,
            batch_size=self.generation_batch_size or 4 * view.batch_size,
        )

    def completions(self, view: View, seed: int) -> list[list[Completion]]:
        """Completions of every query; each query may have another number."""
        generator = self.generator(view)
        if isinstance(generator, ColumnGenerator):
            return _from_column(view, generator)
        view.facts["generator"] = generator.describe()
        view.facts["on_policy"] = self.live and generator.on_policy
        if self.live and not generator.on_policy:
            view.say(
                f"off-policy: temperature={self.temperature}, top_k={self.top_k}, top_p={self.top_p}, stop={self.stop} do not draw "
                "from the model itself, so this is not the gradient of its expected reward"
            )
        return sample_completions(view, generator, self.samples, seed=seed, live=self.live)

    def policy_samples(self, view: View, seed: int) -> Samples:
        """Weighted completions of all queries; what was found on the way goes into the facts and is said."""
        prompts: list[Any] = query_prompts(view)
        ids: list[Any] = list(view.rows("queries").ids)
        tokenizer = view.processing_class
        completions = self.completions(view, seed)
        tokens = [
            [completion_ids(completion, prompt, tokenizer, self.eos, row) for completion in of_query]
            for of_query, prompt, row in zip(completions, prompts, ids, strict=True)
        ]
        functions = self.reward_functions(view)
        described = {"weights": self.reward_weights, "formatting": fingerprint(self.reward_formatting_funcs)}
        rewards = reward_completions(view, functions, completions, tokens, described=described, live=self.live)
        kept = self._kept(view, rewards, functions)
        weights = [
            policy_weights(row, self.baseline, good, name=f"{self.name}: query {query!r}")
            for row, good, query in zip(rewards, kept, ids, strict=True)
        ]
        start = [prompt_ids(prompt, tokenizer, self.name, row) for prompt, row in zip(prompts, ids, strict=True)]
        samples = Samples(
            [
                [Sample(before, ids_of, float(weight)) for ids_of, weight in zip(of_query, row, strict=True)]
                for before, of_query, row in zip(start, tokens, weights, strict=True)
            ]
        )
        self._tell(view, completions, tokens, rewards, weights, samples)
        return samples

    def _kept(self, view: View, rewards: list[np.ndarray], functions: RewardFunctions) -> list[np.ndarray]:
        """Which completions count, ``[n]`` bool for each query."""
        if self.keep == "rejection":
            return [row > 0 for row in rewards]
        if self.keep == "top-k":
            return [_best(row, self.keep_best) for row in rewards]
        if self.keep == "hard-rejection":
            answers = self._references(view)
            ids: list[Any] = list(view.rows("queries").ids)
            tokens = [
                [completion_ids(row[0], prompt, view.processing_class, self.eos, query)]
                for row, prompt, query in zip(answers, query_prompts(view), ids, strict=True)
            ]
            least = reward_completions(
                view,
                functions,
                answers,
                tokens,
                described={"weights": self.reward_weights, "of": REFERENCE},
                live=self.live,
            )
            return [row >= float(reference[0]) - 1e-5 for row, reference in zip(rewards, least, strict=True)]
        return [np.ones(len(row), dtype=bool) for row in rewards]

    def _references(self, view: View) -> list[list[Completion]]:
        """The reference answer of each query."""
        if view.rows("queries").column(REFERENCE) is None:
            raise DataError(
                f"{self.name}: keep='hard-rejection' compares with a reference answer; queries= needs a column {REFERENCE!r}"
            )
        return [of_query[:1] for of_query in _from_column(view, ColumnGenerator(REFERENCE))]

    def _tell(
        self,
        view: View,
        completions: list[list[Completion]],
        tokens: list[list[list[int]]],
        rewards: list[np.ndarray],
        weights: list[np.ndarray],
        samples: Samples,
    ) -> None:
        everything = [completion for of_query in completions for completion in of_query]
        total = np.concatenate(rewards)
        variances = np.array([np.nanvar(row) if np.isfinite(row).any() else np.nan for row in rewards])
        ids = view.rows("queries").ids
        silent = [ids[i] for i, row in enumerate(weights) if not (row != 0).any()]
        facts = {
            "completions": len(everything),
            "unfinished": sum(not completion.finished for completion in everything),
            "empty": sum(not ids for of_query in tokens for ids in of_query),
            "without_reward": int(np.isnan(total).sum()),
            "skipped_weight_0": samples.skipped,
            "mean_reward": None if np.isnan(total).all() else float(np.nanmean(total)),
            "reward_variance": [None if np.isnan(x) else float(x) for x in variances],
            "queries_without_signal": len(silent),
        }
        view.facts["policy"] = facts
        spread = variances[np.isfinite(variances)]
        line = f"{len(everything)} completions of {len(rewards)} queries"
        if len(spread):
            line += (
                f", mean reward {facts['mean_reward']:.4g}, variance within a query {spread.mean():.3g} on average "
                f"({spread.min():.3g} to {spread.max():.3g})"
            )
        for what, words in (
            ("unfinished", "did not end"),
            ("empty", "are empty"),
            ("without_reward", "got no reward"),
        ):
            if facts[what]:
                line += f"; {facts[what]} {words}"
        if silent:
            line += (
                f"; {len(silent)} queries tell nothing, their completions weigh 0: {', '.join(map(repr, silent[:5]))}"
                + " ..." * (len(silent) > 5)
            )
        view.say(line)
        if len(spread):
            shown = [f"{row!r}: {x:.3g}" for row, x in zip(ids, variances, strict=True)]
            more = f" ... ({len(shown)} in the metadata)" if len(shown) > SHOWN else ""
            view.say(f"variance of the reward by query: {', '.join(shown[:SHOWN])}{more}")


def policy_weights(
    rewards: np.ndarray, baseline: str, kept: np.ndarray | None = None, *, name: str = "nice"
) -> np.ndarray:
    """Weight of each completion's loss gradient ``[n]``: ``(r - b) / n`` over those with a reward; 0 for the others.

    Rewards ``[n]`` are NaN where there is none; where only one completion got one, it has none to be compared with: weight 0.

    Raises:
        DataError: a leave-one-out baseline for fewer than 2 completions.
    """
    if baseline == "leave-one-out" and len(rewards) < 2:
        raise DataError(
            f"{name} has {len(rewards)} completion, and baseline='leave-one-out' compares several; give it more, or take "
            "baseline='none'"
        )
    weights = np.zeros(len(rewards))
    rewarded = np.isfinite(rewards)
    count = int(rewarded.sum())
    if count == 0 or (baseline == "leave-one-out" and count < 2):
        return weights
    r = rewards[rewarded]
    if baseline == "leave-one-out":
        # r_k less the mean of the others; of equal rewards exactly 0
        r = (r - r.mean()) * (count / (count - 1)) if np.ptp(r) > 0 else np.zeros(count)
    weights[rewarded] = r / count
    if kept is not None:
        weights[~kept] = 0
        weights *= count / max(1, int((kept & rewarded).sum()))  # an average over those kept
    return weights


def _from_column(view: View, generator: ColumnGenerator) -> list[list[Completion]]:
    """All completions that each query has in a column."""
    queries = view.rows("queries")
    columns = {**query_columns(view), REFERENCE: queries.column(REFERENCE)}
    rows = [
        {name: values[position] for name, values in columns.items() if values is not None}
        for position in range(len(queries))
    ]
    return generator.generate(rows, keys=queries.ids)


def _best(rewards: np.ndarray, count: int) -> np.ndarray:
    """The ``count`` highest rewards; ties by order, none without a reward."""
    best = np.zeros(len(rewards), dtype=bool)
    best[np.argsort(-np.nan_to_num(rewards, nan=-np.inf), kind="stable")[:count]] = True
    return best & np.isfinite(rewards)


def without_signal(view: View, samples: Samples, matrix: torch.Tensor) -> torch.Tensor:
    """The scores ``[rows, queries]``, NaN for queries none of whose completions weighs; says so when none does."""
    silent = [position for position in range(matrix.shape[1]) if not samples.of([position])]
    matrix[:, silent] = float("nan")
    if len(silent) == matrix.shape[1]:
        view.say(
            "no signal: within every query all rewards are equal (or missing), so no row can be ranked; take more samples, a higher "
            "max_new_tokens, or a finer reward"
        )
    return matrix


@dataclass
class NICE(PolicyOptions, AdamScorer):
    """How a step on a row changes the expected reward of the queries' completions.

    Args:
        preset: ``paper`` takes the authors' settings: raw rewards, top-k 50 and top-p 0.95, 20 samples, no end token.
    """

    name: ClassVar[str] = "nice"
    default_when: ClassVar[Any] = "epoch"
    combine: ClassVar[Any] = "learning-rate-sum"
    query_form: ClassVar[Any] = "prompts"

    preset: Literal["paper"] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.preset == "paper":
            apply_preset(self, "paper", {name: x for name, x in PAPER.items() if name not in self.unused()})
        super().__post_init__()
        self.check_policy()

    def unused(self) -> list[str]:
        """Options that nothing reads beside others that were given."""
        return []

    def check(self, view: View) -> None:
        super().check(view)
        self.check_prompts(view)

    def score(self, view: View) -> Result:
        step = self.adam_step(view)
        samples = self.policy_samples(view, self.seed)
        if not samples.ids:  # no need to read the pool
            return Result(matrix=without_signal(view, samples, torch.zeros(len(view.pool), len(view.rows("queries")))))
        matrix = view.gradient_products(
            of="loss" if step is None else mean_loss,
            target="policy",
            normalize=self.normalize,
            precondition=step,
            samples=samples,
            **self.gradient_options(),
        )
        return Result(matrix=without_signal(view, samples, matrix))


@dataclass
class NICEAMC(NICE):
    """NICE on completions of a stronger model, ``E_{y ~ stronger}[r grad log p(y)]``; exactly one source is given.

    They are not draws from the model and get no importance weights, so a baseline changes what is estimated, not only its
    variance: by default there is none, and rewards should be 0 for a completion that should not count.

    Args:
        column: a column of the queries with one completion or several; nothing is then sampled.
        stronger: a causal LM or its id, run here; or with ``endpoint`` the name it is served under.
        endpoint: URL of an OpenAI-compatible server; ``"huggingface"`` for the Hugging Face inference API.
        stronger_processing_class: tokenizer of ``stronger``, where it is not found under its id.
        api_key: for the endpoint; default: the environment's.
        timeout: seconds for one request.
    """

    name: ClassVar[str] = "nice-amc"
    live: ClassVar[bool] = False

    baseline: Literal["leave-one-out", "none"] = field(default="none", kw_only=True)
    column: str | None = field(default=None, kw_only=True)
    stronger: Any = field(default=None, kw_only=True)
    endpoint: str | None = field(default=None, kw_only=True)
    stronger_processing_class: Any = field(default=None, kw_only=True)
    api_key: str | None = field(default=None, kw_only=True, repr=False)
    timeout: float = field(default=60.0, kw_only=True, metadata={"changes_scores": False})

    def unused(self) -> list[str]:
        if self.column is not None:
            return [*SAMPLING, *LOCAL_ONLY, *REMOTE_ONLY]
        return LOCAL_ONLY if self.endpoint is not None else REMOTE_ONLY

    def check_policy(self) -> None:
        super().check_policy()
        for option in self.unused():
            if getattr(self, option) != type(self).__dataclass_fields__[option].default:
                source = "column=" if self.column is not None else "endpoint=" if self.endpoint else "a local model"
                raise OptionError(f"{self.name}: {option} has no use with {source}; leave it out")
        if (self.column is None) == (self.stronger is None):
            raise OptionError(
                f"{self.name}: give column= (completions in the queries) or stronger= (a model, its id, or with endpoint= its name "
                f"there); got column={self.column!r} and stronger={self.stronger!r}"
            )
        if self.stronger is not None and not isinstance(self.stronger, str) and not hasattr(self.stronger, "generate"):
            raise OptionError(f"{self.name}: stronger={self.stronger!r} is neither a causal language model nor an id")
        if self.endpoint not in (None, "huggingface"):
            check_url(str(self.endpoint), f"{self.name}: endpoint")
        if self.endpoint is not None and not isinstance(self.stronger, str):
            raise OptionError(
                f"{self.name}: endpoint={self.endpoint!r} needs stronger= the model's name there; got {self.stronger!r}"
            )

    def generator(self, view: View) -> Generator | ColumnGenerator:
        if self.column is not None:
            return ColumnGenerator(self.column)
        sampling: dict[str, Any] = {"temperature": self.temperature, "top_p": self.top_p, "stop": self.stop}
        if self.endpoint is not None:
            return EndpointGenerator(
                self.stronger,
                base_url=None if self.endpoint == "huggingface" else self.endpoint,
                api_key=self.api_key,
                max_new_tokens=self.max_new_tokens,
                timeout=self.timeout,
                **sampling,
            )
        model, tokenizer = self._stronger(view)
        return LocalGenerator(
            model,
            tokenizer,
            max_new_tokens=self.max_new_tokens,
            top_k=self.top_k,
            batch_size=self.generation_batch_size or 4 * view.batch_size,
            **sampling,
        )

    def prepare(self, view: View) -> None:
        """Completions do not depend on the weights: an endpoint that fails does so before training, not after an epoch."""
        self.completions(view, self.seed)

    def _stronger(self, view: View) -> tuple[Any, Any]:
        """Model and tokenizer, loaded once and put on the device of the model under study."""
        if "stronger" not in view.shared:
            from transformers import AutoModelForCausalLM, AutoTokenizer

            model, tokenizer = self.stronger, self.stronger_processing_class
            try:
                if isinstance(model, str):
                    model = AutoModelForCausalLM.from_pretrained(model, trust_remote_code=False)
                    tokenizer = tokenizer or AutoTokenizer.from_pretrained(self.stronger, trust_remote_code=False)
            except (OSError, ValueError) as error:
                raise DataError(f"{self.name}: stronger={self.stronger!r} cannot be loaded: {error}") from error
            view.shared["stronger"] = model.to(view.device).eval(), tokenizer or view.processing_class
        return view.shared["stronger"]

    def completions(self, view: View, seed: int) -> list[list[Completion]]:
        """Text of the stronger model: its tokens may be another vocabulary's."""
        if self.baseline != "none":
            view.say(
                f"baseline={self.baseline!r} on completions that the model did not draw itself changes what is estimated: the "
                "gradient of the mean log-likelihood, times the mean reward, is taken away"
            )
        return [
            [Completion(completion.text, None, completion.finished) for completion in of_query]
            for of_query in super().completions(view, seed)
        ]


@hookimpl
def register_scorers(register: Callable[..., None]) -> None:
    register(NICE)
    register(NICEAMC)
