"""Surrogates of a score over a pool: from scores (``fit``) or from preferences between pairs (``fit_pairs``).

Preferences follow the Bradley-Terry-Luce model: the first of a pair is preferred with probability sigmoid(f(first) -
f(second)); a tie counts as half a win for each. The same seed gives the same fit; no global random state is touched.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from hfdataopt.bandits.gradients import LayerGradients, layer_gradients, scores_and_gradients
from hfdataopt.bandits.laplace import laplace, root_of
from hfdataopt.bandits.posterior import DiagonalPosterior, Posterior, check_pairs
from hfdataopt.errors import DataError, OptionError
from hfdataopt.options import apply_preset, check_options, check_range

NOISE_GRID = tuple(10 ** (k / 2) for k in range(-8, 5))  # noise over signal variance, 1e-4 to 1e2
AMPLITUDE_GRID = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # prior variance of a score, in logits squared
INPUT_SCALE_GRID = (0.1, 0.3, 1.0)  # of standardised inputs before a network
LENGTHSCALE_GRID = tuple(2 ** (k / 2) for k in range(-4, 8))  # over the median distance of the training rows


@dataclass(frozen=True)
class KernelPoints:
    """Rows ``[n, d]`` with a linear kernel, or (with a lengthscale) a Gaussian one, exp(-|x - x'|^2 / (2 l^2))."""

    x: Tensor
    lengthscale: float | None = None

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, index: Any) -> "KernelPoints":
        return KernelPoints(self.x[index], self.lengthscale)

    def double(self) -> "KernelPoints":
        return KernelPoints(self.x.double(), self.lengthscale)

    def gram(self, other: "KernelPoints") -> Tensor:
        if self.lengthscale is None:
            return self.x @ other.x.T
        return torch.exp(squared_distances(self.x, other.x) / (-2 * self.lengthscale**2))

    def squared_norms(self) -> Tensor:
        return (self.x**2).sum(1) if self.lengthscale is None else torch.ones_like(self.x[:, 0])


def squared_distances(x: Tensor, other: Tensor) -> Tensor:
    """Squared Euclidean distances ``[n, m]``."""
    return ((x**2).sum(1)[:, None] + (other**2).sum(1) - 2 * x @ other.T).clamp_min(0.0)


@dataclass
class Surrogate:
    """What all surrogates share: standardised inputs, checks, ``predict``.

    Attributes:
        seed: of the network's initialisation; kernels need none.
    """

    seed: int = 0
    _x: Tensor | None = field(default=None, init=False, repr=False, compare=False)
    _pairs: Any = field(default=None, init=False, repr=False, compare=False)
    _location: Any = field(default=None, init=False, repr=False, compare=False)
    _target: tuple[float, float] = field(default=(0.0, 1.0), init=False, repr=False, compare=False)
    _relative: Any = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_options(self)
        check_range(self, "seed", at_least=0)

    def fit(self, x: Any, y: Any, noise: Any = None) -> "Surrogate":
        """Learn from scores ``y [t]`` at ``x [t, d]``, at least one.

        ``noise [t]`` is how many times larger the noise variance of each score is than that of the others (kernels only);
        its scale does not matter.
        """
        x, y = self._learn_inputs(x), _finite(y, "y").flatten()
        if len(y) != len(x):
            raise DataError(f"{type(self).__name__}: {len(x)} rows of x and {len(y)} of y")
        self._relative = self._learn_noise(noise, len(y))
        spread = float(y.std(correction=0)) if len(y) > 1 else 0.0
        self._target = (float(y.mean()), spread if spread > 0 else 1.0)
        self._pairs = None
        self._fit(x, y)
        return self

    def fit_pairs(self, x: Any, pairs: Any, outcomes: Any) -> "Surrogate":
        """Learn from preferences.

        Args:
            x: ``[t, d]``, the rows that were compared.
            pairs: ``[p, 2]``, rows of ``x``, at least one.
            outcomes: ``[p]``, 1 where the first was preferred, 0 where the second was, 0.5 for a tie.
        """
        x, outcomes = self._learn_inputs(x), _finite(outcomes, "outcomes").flatten()
        left, right = check_pairs(pairs, len(x))
        if not len(left) or len(left) != len(outcomes):
            raise DataError(f"{type(self).__name__}: {len(left)} pairs and {len(outcomes)} outcomes")
        if outcomes.min() < 0 or outcomes.max() > 1:
            raise DataError(
                f"{type(self).__name__}: outcomes must be between 0 and 1, got {outcomes.min():g} to {outcomes.max():g}"
            )
        self._target = (0.0, 1.0)
        self._pairs = torch.stack([left, right], 1)
        self._fit_pairs(x, left, right, outcomes)
        return self

    def posterior(self, pool: Any) -> Posterior | DiagonalPosterior:
        """Mean and variances of ``pool [N, d]``, which shrink as rows are chosen."""
        raise NotImplementedError

    def mean(self, pool: Any) -> Tensor:
        """Mean ``[N]`` of ``pool [N, d]``, float64: that of :meth:`posterior`, without its variances where these cost more."""
        return self.posterior(pool).mean

    def predict(self, pool: Any) -> tuple[Tensor, Tensor]:
        """Mean and variance ``[N]`` of ``pool [N, d]``, float64; after ``fit_pairs`` the mean's zero is arbitrary."""
        posterior = self.posterior(pool)
        return posterior.mean, posterior.variance()

    def _fit(self, x: Tensor, y: Tensor) -> None:
        raise NotImplementedError

    def _fit_pairs(self, x: Tensor, left: Tensor, right: Tensor, outcomes: Tensor) -> None:
        raise NotImplementedError

    def _learn_noise(self, noise: Any, rows: int) -> Tensor:
        if noise is None:
            return torch.ones(rows, dtype=torch.float64)
        noise = _finite(noise, "noise").flatten()
        if not isinstance(self, _Kernel):
            raise OptionError(f"{type(self).__name__}: only Gaussian processes know noise of different sizes")
        if len(noise) != rows or not noise.min() > 0:
            raise DataError(f"{type(self).__name__}: noise must be {rows} numbers above 0, one per score")
        return noise / noise.mean()

    def _learn_inputs(self, x: Any) -> Tensor:
        x = _finite(x, "x")
        if x.ndim != 2 or not len(x):
            raise DataError(
                f"{type(self).__name__}: x has shape {tuple(x.shape)}; it takes [rows, features], at least one row"
            )
        spread = x.std(0, correction=0)
        self._location = (x.mean(0), torch.where(spread > 0, spread, 1.0))
        self._x = self._inputs(x)
        return self._x

    def _inputs(self, x: Any) -> Tensor:
        if self._location is None:
            raise DataError(f"{type(self).__name__}: fit it before predicting")
        x = _finite(x, "pool")
        if x.ndim != 2 or x.shape[1] != len(self._location[0]):
            raise DataError(
                f"{type(self).__name__}: pool has shape {tuple(x.shape)}; it takes [rows, {len(self._location[0])}]"
            )
        return (x - self._location[0]) / self._location[1]


@dataclass
class _Kernel(Surrogate):
    """A Gaussian process whose kernel, noise and amplitude have the largest (Laplace-approximate) marginal likelihood."""

    _kernel: Any = field(default=None, init=False, repr=False, compare=False)
    _scale: float = field(default=1.0, init=False, repr=False, compare=False)
    _noise: Any = field(default=None, init=False, repr=False, compare=False)
    _weights: Any = field(default=None, init=False, repr=False, compare=False)
    _given: dict[int, tuple[float, ...]] | None = field(default=None, init=False, repr=False, compare=False)
    _chosen: dict[int, tuple[float, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def _kernels(self, x: Tensor) -> list[Callable[[Tensor], Any]]:
        """Maps from inputs to points, to choose from."""
        raise NotImplementedError

    def _fit(self, x: Tensor, y: Tensor) -> None:
        y = (y - self._target[0]) / self._target[1]
        best = math.inf
        root = self._relative.sqrt()
        for kernel in self._kernels(x):
            gram = _gram(kernel(x))
            unit = float(gram.diagonal().mean()) or 1.0
            values, vectors = torch.linalg.eigh(gram / (unit * root[:, None] * root))
            projected = (vectors.T @ (y / root)) ** 2
            for noise in NOISE_GRID:
                spectrum = values.clamp_min(0.0) + noise
                signal = max(float((projected / spectrum).mean()), 1e-12)
                loss = len(y) * math.log(signal) + float(spectrum.log().sum())
                if loss < best:
                    best, self._kernel, self._scale = loss, kernel, signal / unit
                    self._noise = noise * unit * self._relative
        self._weights = torch.linalg.solve(_gram(self._kernel(x)) + torch.diag(self._noise), y)

    def _fit_pairs(self, x: Tensor, left: Tensor, right: Tensor, outcomes: Tensor) -> None:
        """``_given``, kernels by number and their amplitudes, replaces the priors that are looked at."""
        best = -math.inf
        kernels = self._kernels(x)
        for number, amplitudes in (self._given or dict.fromkeys(range(len(kernels)), AMPLITUDE_GRID)).items():
            kernel = kernels[number]
            gram = _gram(kernel(x))
            unit = float(gram.diagonal().mean()) or 1.0
            root = root_of(gram / unit)
            design = root[left] - root[right]
            weights = torch.zeros(root.shape[1], dtype=x.dtype)
            for amplitude in amplitudes:
                evidence, weights, _ = laplace(design, outcomes, amplitude, weights)
                if evidence > best:
                    best, self._kernel, self._scale = evidence, kernel, amplitude / unit
                    self._chosen = {number: (amplitude,)}
                    chance = torch.sigmoid(design @ weights)
                    slopes = outcomes - chance
                    self._noise = unit / (amplitude * (chance * (1 - chance)).clamp_min(1e-9))
        self._weights = torch.zeros(len(x), dtype=torch.float64)
        self._weights.index_add_(0, left, slopes).index_add_(0, right, -slopes)
        self._weights *= self._scale

    def gradient(self, points: Any) -> Tensor:
        """Gradient ``[N, d]`` of the posterior mean at ``points [N, d]``, with respect to them."""
        x = self._inputs(points).requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(self._mean(x).sum(), x)
        return self._target[1] * slope / self._location[1]

    def _mean(self, x: Tensor) -> Tensor:
        """The mean of standardised scores ``[N]``, which can be differentiated in ``x``."""
        return self._kernel(x).gram(self._kernel(self._x)) @ self._weights

    def posterior(self, pool: Any) -> Posterior:
        """As of any surrogate; mean and variance can be differentiated in a tensor that requires gradients.

        (Not with the tangent kernel.)
        """
        x = self._inputs(pool)
        if isinstance(pool, Tensor) and pool.requires_grad:
            x = (pool.double() - self._location[0]) / self._location[1]
        points, observed = self._kernel(x), self._kernel(self._x)
        mean = self._located(points, observed)
        return Posterior(mean, points, observed, self._noise, self._pairs, self._scale * self._target[1] ** 2)

    def mean(self, pool: Any) -> Tensor:
        return self._located(self._kernel(self._inputs(pool)), self._kernel(self._x))

    def _located(self, points: Any, observed: Any) -> Tensor:
        location, spread = self._target
        return location + spread * (points.gram(observed).double() @ self._weights)


@dataclass
class LinearSurrogate(_Kernel):
    """Ridge regression, or ridge Bradley-Terry-Luce, on standardised features."""

    def _kernels(self, x: Tensor) -> list[Callable[[Tensor], Any]]:
        return [KernelPoints]


@dataclass
class RBFSurrogate(_Kernel):
    """Gaussian process with a Gaussian kernel on standardised features."""

    def _kernels(self, x: Tensor) -> list[Callable[[Tensor], Any]]:
        distances = squared_distances(x, x)[*torch.triu_indices(len(x), len(x), 1)]
        median = float(distances.median().sqrt()) if len(distances) else 0.0
        return [partial(KernelPoints, lengthscale=factor * (median or 1.0)) for factor in LENGTHSCALE_GRID]


@dataclass
class NeuralTangentSurrogate(_Kernel):
    """Gaussian process whose kernel is the tangent kernel of a network at its initialisation (as in ZOPO).

    Attributes:
        widths: of the hidden layers.
        activation: of the hidden layers.
    """

    widths: tuple[int, ...] = (512,)
    activation: Literal["relu", "tanh", "gelu"] = "tanh"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "widths", at_least=1)

    def _kernels(self, x: Tensor) -> list[Callable[[Tensor], Any]]:
        network = mlp(x.shape[1], self.widths, seed=self.seed, activation=self.activation, last=1.0).double()
        return [partial(_tangent, network, scale) for scale in INPUT_SCALE_GRID]

    def _mean(self, x: Tensor) -> Tensor:
        """The derivative of the network's scores along the weighted sum of the observed gradients."""
        network, scale = self._kernel.args
        parameters = dict(network.named_parameters())
        total = self._weights @ network(scale * self._x)[:, 0]
        direction = dict(zip(parameters, torch.autograd.grad(total, list(parameters.values())), strict=True))

        def scores(given: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(network, given, scale * x)[:, 0]

        constant = {name: parameter.detach() for name, parameter in parameters.items()}
        return torch.func.jvp(scores, (constant,), (direction,))[1]


@dataclass
class MLPSurrogate(Surrogate):
    """A small network, refitted from the same initialisation each time, with NeuralUCB's variance.

    The loss is penalised by ``ridge`` times the squared distance to the initialisation, so that mean and variance are those
    of about the same Gaussian process (Jacot et al., 2018).

    Attributes:
        widths, activation: of the hidden layers.
        steps, learning_rate: of full-batch Adam.
        ridge: the noise variance, where the mean squared norm of the training rows' gradients counts as 1.
        diagonal: the variance by the diagonal of the matrix alone.
        preset: ``papers`` is as the code of INSTINCT and APOHF: weights and biases from N(0, 1), raw targets, ReLU, 1,000
            steps with weight decay ``ridge / observations`` (of pairs ``ridge / (pairs + 50)``) inside Adam, and ridge 0.1 in
            the gradients' own units.
    """

    name = "mlp"
    widths: tuple[int, ...] = (100,)
    activation: Literal["relu", "tanh", "gelu"] = "tanh"
    steps: int = 300
    learning_rate: float = 1e-3
    ridge: float = 0.3
    diagonal: bool = False
    preset: Literal["papers"] | None = None
    network: nn.Sequential | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preset is not None:
            apply_preset(self, self.preset, {"activation": "relu", "steps": 1000, "ridge": 0.1})
        check_range(self, "widths", at_least=1)
        check_range(self, "steps", at_least=1)
        check_range(self, "learning_rate", above=0)
        check_range(self, "ridge", above=0)

    def _fit(self, x: Tensor, y: Tensor) -> None:
        if self.preset == "papers":
            self._target = (0.0, 1.0)
        targets = ((y - self._target[0]) / self._target[1]).float()
        self._train(x, lambda scores: functional.mse_loss(scores, targets), len(y) / 2)

    def _fit_pairs(self, x: Tensor, left: Tensor, right: Tensor, outcomes: Tensor) -> None:
        targets = outcomes.float()
        self._train(
            x,
            lambda scores: functional.binary_cross_entropy_with_logits(scores[left] - scores[right], targets),
            len(outcomes),
        )

    def _train(self, x: Tensor, loss: Callable[[Tensor], Tensor], factor: float) -> None:
        """Minimise the mean ``loss`` of the scores; ``factor`` times it is the negative log-likelihood."""
        papers, rows = self.preset == "papers", x.float()
        network = mlp(x.shape[1], self.widths, seed=self.seed, activation=self.activation, normal=papers)
        start = [parameter.detach().clone() for parameter in network.parameters()]
        pull = 0.0 if papers else self.ridge * _unit(layer_gradients(network, rows)) / (2 * factor)
        optimizer = torch.optim.Adam(
            network.parameters(),
            lr=self.learning_rate,
            weight_decay=self.ridge / (self._observations + (0 if self._pairs is None else 50)) if papers else 0.0,
        )
        for _ in range(self.steps):
            optimizer.zero_grad()
            total = loss(network(rows)[:, 0])
            if pull:
                moved = [((now - then) ** 2).sum() for now, then in zip(network.parameters(), start, strict=True)]
                total = total + pull * torch.stack(moved).sum()
            total.backward()
            optimizer.step()
        network.zero_grad()
        self.network = network

    def gradients(self, points: Any) -> LayerGradients:
        """Gradients of the network's scores at ``points [N, d]``."""
        if self.network is None:
            raise DataError("MLPSurrogate: fit it before taking gradients")
        return layer_gradients(self.network, self._inputs(points))

    @property
    def _observations(self) -> int:
        assert self._x is not None
        return len(self._x) if self._pairs is None else len(self._pairs)

    def posterior(self, pool: Any, observed: LayerGradients | None = None) -> Posterior | DiagonalPosterior:
        """Mean and variances of ``pool [N, d]``; ``observed`` replaces the training rows' gradients (stale ones, say)."""
        x = self._inputs(pool)
        assert self.network is not None and self._x is not None
        mean, gradients = scores_and_gradients(self.network, x, "pool")
        seen = layer_gradients(self.network, self._x) if observed is None else observed
        location, spread = self._target
        unit = 1.0 if self.preset == "papers" else _unit(layer_gradients(self.network, self._x))
        kind = DiagonalPosterior if self.diagonal else Posterior
        pairs = self._pairs if observed is None else None
        mean = location + spread * mean.double()
        return kind(mean, gradients, seen, self.ridge * unit, pairs, spread**2 / unit)


@dataclass
class EnsembleSurrogate(Surrogate):
    """Members fitted to resampled observations from different initialisations; a Thompson draw is one member.

    Of preferences, kernel members share the prior that is the likeliest for all of them.

    Attributes:
        member: the surrogate that is copied.
        size: number of members.
    """

    member: Surrogate = field(default_factory=MLPSurrogate)
    size: int = 10
    _members: list[Surrogate] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "size", at_least=2)

    def _fit(self, x: Tensor, y: Tensor) -> None:
        self._members = [member.fit(x[rows], y[rows]) for member, rows in self._resampled(len(y))]

    def _fit_pairs(self, x: Tensor, left: Tensor, right: Tensor, outcomes: Tensor) -> None:
        pairs = torch.stack([left, right], 1)
        prior = None
        if isinstance(self.member, _Kernel):
            whole = replace(self.member, seed=self.seed)
            whole.fit_pairs(x, pairs, outcomes)
            prior = whole._chosen
        self._members = []
        for member, rows in self._resampled(len(outcomes)):
            if isinstance(member, _Kernel):
                member._given = prior
            self._members.append(member.fit_pairs(x, pairs[rows], outcomes[rows]))

    def _resampled(self, observations: int) -> Iterator[tuple[Surrogate, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed)
        for i in range(self.size):
            rows = torch.randint(observations, (observations,), generator=generator)
            yield replace(self.member, seed=self.seed * self.size + i), rows

    def posterior(self, pool: Any) -> "EnsemblePosterior":
        x = self._inputs(pool)
        return EnsemblePosterior(torch.stack([member.mean(x) for member in self._members]))


class EnsemblePosterior(Posterior):
    """Mean and covariance of members' scores ``[members, N]``."""

    def __init__(self, scores: Tensor) -> None:
        deviations = KernelPoints((scores - scores.mean(0)).T / math.sqrt(len(scores) - 1))
        noise = 0.1 * float(deviations.squared_norms().mean())
        super().__init__(scores.mean(0), deviations, None, max(noise, 1e-12))
        self.scores = scores

    def sample(self, generator: torch.Generator) -> Tensor:
        """The scores of a member drawn at random."""
        return self.scores[int(torch.randint(len(self.scores), (1,), generator=generator))]


def mlp(
    inputs: int,
    widths: tuple[int, ...],
    *,
    seed: int,
    activation: str = "relu",
    normal: bool = False,
    last: float = 0.1,
) -> nn.Sequential:
    """A float32 MLP with one output.

    He initialisation (He et al., 2015) with zero biases and a last layer of standard deviation ``last / sqrt(width)``; with
    ``normal`` all weights and biases from N(0, 1).
    """
    kinds: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}
    generator = torch.Generator().manual_seed(seed)
    modules: list[nn.Module] = []
    sizes = [inputs, *widths, 1]
    for i, (before, after) in enumerate(itertools.pairwise(sizes)):
        linear = nn.utils.skip_init(nn.Linear, before, after)
        is_last = i == len(sizes) - 2
        std = 1.0 if normal else last / math.sqrt(before) if is_last else math.sqrt(2 / before)
        with torch.no_grad():
            linear.weight.normal_(0.0, std, generator=generator)
            linear.bias.normal_(0.0, 1.0, generator=generator) if normal else linear.bias.zero_()
        modules += [linear] if is_last else [linear, kinds[activation]()]
    return nn.Sequential(*modules)


def _tangent(network: nn.Module, scale: float, rows: Tensor) -> LayerGradients:
    return layer_gradients(network, scale * rows)


def _unit(gradients: LayerGradients) -> float:
    return float(gradients.squared_norms().double().mean()) or 1.0


def _gram(points: Any) -> Tensor:
    return points.gram(points).double()


def _finite(values: Any, name: str) -> Tensor:
    values = torch.as_tensor(values).detach().double()
    if not torch.isfinite(values).all():
        raise DataError(f"{name}: {int((~torch.isfinite(values)).sum())} values are not finite")
    return values
