"""Every displayed equation of the part "The mathematics of SGD", evaluated with random numbers.

The checks do not import the notebooks: each states its equation anew, on small arrays, for
several seeds. `CHECKS` maps the label of an equation to its check, and the last tests read
the pages, so that an equation without a label, without a check or without a cell fails.
"""

import itertools
import re

import nbformat
import numpy as np
import pytest

from tools.pages import ROOT

PAGES = sorted((ROOT / "chapters" / "math_of_sgd").glob("*.ipynb"))
CHECKS = {}


def checks(*labels):
    def register(function):
        for label in labels:
            assert label not in CHECKS, f"{label} has two checks"
            CHECKS[label] = function
        return function

    return register


# --- small problems -----------------------------------------------------------------------


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def data(rng, n=12, d=3):
    return rng.normal(size=(n, d)), rng.integers(0, 2, size=n).astype(float)


def logistic(theta, X, y):
    return np.mean(np.logaddexp(0, X @ theta) - y * (X @ theta))


def each_gradient(theta, X, y):
    return (sigmoid(X @ theta) - y)[:, None] * X


def numerical(f, theta, step=1e-5):
    theta = np.asarray(theta, float)
    slopes = [(f(theta + step * e) - f(theta - step * e)) / (2 * step) for e in np.eye(theta.size)]
    return np.array(slopes)


def bowl(rng, d=4, low=0.3, high=3.0):
    """A positive matrix with known eigenvalues h and eigenvectors Q, and its lowest point."""
    h = np.sort(rng.uniform(low, high, size=d))
    Q = np.linalg.qr(rng.normal(size=(d, d)))[0]
    return Q @ np.diag(h) @ Q.T, h, Q, rng.normal(size=d)


def roots(eta_h, gamma):
    return np.roots([1, -(1 + gamma - eta_h), gamma])


def ridge_problem(rng):
    """Logistic regression with a penalty: loss, gradients of examples, beta, mu, sigma2, lowest."""
    X, y = data(rng, n=15)
    penalty = rng.uniform(0.1, 0.5)

    def loss(theta):
        return logistic(theta, X, y) + penalty / 2 * theta @ theta

    def each(theta):
        return each_gradient(theta, X, y) + penalty * theta

    beta = np.linalg.eigvalsh(X.T @ X / (4 * len(X))).max() + penalty
    best = np.zeros(3)
    for _ in range(2000):
        best = best - each(best).mean(axis=0) / beta
    return loss, each, beta, penalty, np.mean(np.sum(X**2, axis=1)), best


# --- gradient descent -----------------------------------------------------------------------


@checks("eq-sigmoid", "eq-sigmoid-derivative")
def check_sigmoid(rng):
    z = rng.normal(size=20) * 3
    assert np.allclose(sigmoid(z), (1 + np.tanh(z / 2)) / 2)
    slope = (sigmoid(z + 1e-6) - sigmoid(z - 1e-6)) / 2e-6
    assert np.allclose(slope, sigmoid(z) * (1 - sigmoid(z)), atol=1e-8)


@checks("eq-cross-entropy", "eq-logistic-loss", "eq-empirical-risk")
def check_loss(rng):
    X, y = data(rng)
    theta = rng.normal(size=3)
    p = sigmoid(X @ theta)
    singles = -y * np.log(p) - (1 - y) * np.log(1 - p)
    assert np.allclose(singles, np.log(1 + np.exp(X @ theta)) - y * (X @ theta))
    assert np.isclose(logistic(theta, X, y), singles.sum() / len(y))


@checks("eq-minimize")
def check_minimum(rng):
    H, h, Q, best = bowl(rng)

    def loss(theta):
        return 0.5 * (theta - best) @ H @ (theta - best)

    theta = rng.normal(size=4)
    for _ in range(2000):
        theta = theta - H @ (theta - best) / h.max()
    around = theta + rng.normal(size=(50, 4)) * 0.1
    assert all(loss(other) >= loss(theta) for other in around)


@checks("eq-example-gradient", "eq-logistic-gradient", "eq-reverse-mode")
def check_logistic_gradient(rng):
    X, y = data(rng)
    theta = rng.normal(size=3)
    for x, t in zip(X, y):

        def one(theta, x=x, t=t):
            return logistic(theta, x[None], t[None])

        assert np.allclose(numerical(one, theta), (sigmoid(x @ theta) - t) * x, atol=1e-8)
    whole = numerical(lambda theta: logistic(theta, X, y), theta)
    assert np.allclose(whole, X.T @ (sigmoid(X @ theta) - y) / len(y), atol=1e-8)

    def in_scores(z):
        return np.mean(np.logaddexp(0, z) - y * z)

    assert np.allclose(X.T @ numerical(in_scores, X @ theta), whole, atol=1e-8)


@checks("eq-taylor", "eq-central-difference")
def check_central_difference(rng):
    x = rng.uniform(-1, 1)
    f, derivatives = np.sin, (np.cos(x), -np.sin(x), -np.cos(x))
    for step in (0.1, 0.05):
        for sign in (1, -1):
            s = sign * step
            series = (
                f(x) + s * derivatives[0] + s**2 / 2 * derivatives[1] + s**3 / 6 * derivatives[2]
            )
            assert abs(f(x + s) - series) <= step**4 / 24
        slope = (f(x + step) - f(x - step)) / (2 * step)
        assert abs(slope - derivatives[0] - step**2 / 6 * derivatives[2]) <= step**4 / 100


@checks("eq-difference-error", "eq-best-difference-step")
def check_best_step(rng):
    u, M = 10.0 ** rng.uniform(-17, -15), rng.uniform(0.1, 10)

    def error(step):
        return u / step + M / 6 * step**2

    best = (3 * u / M) ** (1 / 3)
    for factor in (0.5, 0.9, 1.1, 2):
        assert error(best) < error(factor * best)


@checks("eq-directional-derivative", "eq-steepest")
def check_direction(rng):
    X, y = data(rng)
    theta = rng.normal(size=3)
    slope = each_gradient(theta, X, y).mean(axis=0)
    for u in rng.normal(size=(20, 3)):
        u /= np.linalg.norm(u)
        along = (logistic(theta + 1e-5 * u, X, y) - logistic(theta - 1e-5 * u, X, y)) / 2e-5
        assert np.isclose(along, slope @ u, atol=1e-8)
        assert abs(slope @ u) <= np.linalg.norm(slope)
    steepest = -slope / np.linalg.norm(slope)
    assert np.isclose(slope @ steepest, -np.linalg.norm(slope))


@checks("eq-update", "eq-sgd")
def check_update(rng):
    X, y = data(rng)
    theta = rng.normal(size=3)
    slope = each_gradient(theta, X, y).mean(axis=0)
    assert logistic(theta - 1e-3 * slope, X, y) < logistic(theta, X, y)
    drop = (logistic(theta, X, y) - logistic(theta - 1e-6 * slope, X, y)) / 1e-6
    assert np.isclose(drop, slope @ slope, rtol=1e-3)
    after = [theta - 0.1 * g for g in each_gradient(theta, X, y)]  # all single-example steps
    assert np.allclose(np.mean(after, axis=0), theta - 0.1 * slope)


@checks("eq-quadratic", "eq-quadratic-gradient", "eq-error-recursion", "eq-modes", "eq-loss-modes")
def check_bowl(rng):
    H, h, Q, best = bowl(rng)

    def loss(theta):
        return 0.5 * (theta - best) @ H @ (theta - best)

    theta = start = rng.normal(size=4)
    assert np.allclose(numerical(loss, theta), H @ (theta - best), atol=1e-8)
    rate = rng.uniform(0.1, 0.6)
    for t in range(15):
        c0 = Q.T @ (start - best)
        assert np.allclose(Q.T @ (theta - best), (1 - rate * h) ** t * c0)
        assert np.isclose(loss(theta), 0.5 * np.sum(h * (1 - rate * h) ** (2 * t) * c0**2))
        after = theta - rate * H @ (theta - best)
        assert np.allclose(after - best, (np.eye(4) - rate * H) @ (theta - best))
        theta = after


@checks("eq-stability")
def check_stability(rng):
    H, h, Q, best = bowl(rng)
    for factor in (0.1, 0.97, 1.03, 1.5):
        error = rng.normal(size=4)
        for _ in range(3000):
            error = error - factor * 2 / h.max() * H @ error
            if np.linalg.norm(error) > 1e6:
                break
        assert (np.linalg.norm(error) < 1e-6) == (factor < 1)


@checks("eq-contraction", "eq-best-rate")
def check_best_rate(rng):
    H, h, Q, best = bowl(rng)
    mu, beta = h.min(), h.max()

    def rho(rate):
        return max(abs(1 - rate * mu), abs(1 - rate * beta))

    for rate in rng.uniform(0, 2 / beta, size=20):
        assert np.isclose(rho(rate), np.linalg.norm(np.eye(4) - rate * H, 2))
        assert rho(rate) >= rho(2 / (beta + mu))
        error = rng.normal(size=4)
        shrunk = np.linalg.norm(error - rate * H @ error)
        assert shrunk <= rho(rate) * np.linalg.norm(error) + 1e-12
    assert np.isclose(rho(2 / (beta + mu)), (beta / mu - 1) / (beta / mu + 1))


@checks("eq-step-count")
def check_step_count(rng):
    kappa, share = rng.uniform(1.1, 500), 10 ** rng.uniform(-8, -1)
    rho, steps = (kappa - 1) / (kappa + 1), kappa / 2 * np.log(1 / share)
    assert rho**steps <= share <= rho ** (0.4 * steps) or kappa < 2


@checks("eq-logistic-hessian", "eq-hessian-bound")
def check_hessian(rng):
    X, y = data(rng)
    theta, u = rng.normal(size=(2, 3))
    p = sigmoid(X @ theta)
    H = X.T @ np.diag(p * (1 - p)) @ X / len(y)

    def slope(theta):
        return each_gradient(theta, X, y).mean(axis=0)

    assert np.allclose(numerical(slope, theta), H, atol=1e-8)
    assert np.isclose(u @ H @ u, np.mean(p * (1 - p) * (X @ u) ** 2))
    assert u @ H @ u <= np.sum((X @ u) ** 2) / (4 * len(y))


# --- stochastic gradients -----------------------------------------------------------------


@checks(
    "eq-minibatch",
    "eq-unbiased",
    "eq-sigma",
    "eq-error-square",
    "eq-variance-with",
    "eq-pair-covariance",
    "eq-variance-without",
)
def check_minibatches(rng):
    n = 6
    G = rng.normal(size=(n, 3))
    mean, A = G.mean(axis=0), G - G.mean(axis=0)
    sigma2 = np.mean(np.sum(A**2, axis=1))
    assert np.allclose(A.sum(axis=0), 0)
    pairs = np.mean([A[i] @ A[j] for i, j in itertools.permutations(range(n), 2)])
    assert np.isclose(pairs, -sigma2 / (n - 1))
    for B in (1, 2, 3):
        replaced = [G[list(S)].mean(axis=0) for S in itertools.product(range(n), repeat=B)]
        dealt = [G[list(S)].mean(axis=0) for S in itertools.combinations(range(n), B)]
        assert np.allclose(np.mean(replaced, axis=0), mean)
        assert np.allclose(np.mean(dealt, axis=0), mean)

        def error(batches):
            return np.mean([np.sum((g - mean) ** 2) for g in batches])

        assert np.isclose(error(replaced), sigma2 / B)
        assert np.isclose(error(dealt), sigma2 / B * (n - B) / (n - 1))
        assert np.isclose(error(dealt), (B * sigma2 + B * (B - 1) * pairs) / B**2)


@checks("eq-noisy-mode", "eq-moment-recursion", "eq-noise-floor", "eq-moment-solution")
def check_noise_floor(rng):
    h, rate, s, B = rng.uniform(0.2, 2), rng.uniform(0.05, 0.8), rng.uniform(0.5, 2), 4
    noise = s / np.sqrt(B) * np.array([-1, 1])  # two equally likely values, with variance s^2 / B
    floor = rate * s**2 / (B * h * (2 - rate * h))
    points, moment = np.array([1.3]), 1.3**2
    for t in range(10):  # the exact mean over all 2^t noise sequences
        assert np.isclose(np.mean(points**2), moment)
        assert np.isclose(moment, floor + (1 - rate * h) ** (2 * t) * (1.3**2 - floor))
        points = ((1 - rate * h) * points[:, None] - rate * noise).ravel()
        moment = (1 - rate * h) ** 2 * moment + rate**2 * s**2 / B
    assert np.isclose((1 - rate * h) ** 2 * floor + rate**2 * s**2 / B, floor)


@checks("eq-loss-floor")
def check_loss_floor(rng):
    h, s2, B = rng.uniform(0.2, 3, size=5), rng.uniform(0.1, 2, size=5), 8
    for rate in (0.3, 0.001):
        moment = np.zeros(5)
        for _ in range(round(30 / rate / h.min())):
            moment = (1 - rate * h) ** 2 * moment + rate**2 * s2 / B
        floor = 0.5 * np.sum(h * moment)
        assert np.isclose(floor, rate / (2 * B) * np.sum(s2 / (2 - rate * h)))
    assert np.isclose(floor, rate * s2.sum() / (4 * B), rtol=2e-3)


@checks("eq-robbins-monro")
def check_robbins_monro(rng):
    k = int(rng.integers(3, 16))
    t = np.arange(2**k + 1, 2 ** (k + 1) + 1)
    assert np.sum(1 / t) >= 0.5  # each doubling adds as much again
    assert np.all(1 / t**2 <= 1 / (t - 1) - 1 / t + 1e-18)
    assert np.sum(1 / np.arange(1.0, 2**k) ** 2) < 2


@checks("eq-cosine")
def check_cosine(rng):
    T, start = int(rng.integers(10, 200)), rng.uniform(0.01, 1)
    rates = start / 2 * (1 + np.cos(np.pi * np.arange(T + 1) / T))
    assert np.isclose(rates[0], start) and np.isclose(rates[-1], 0)
    assert np.all(np.diff(rates) < 0)
    assert np.isclose(rates.mean(), start / 2)


@checks("eq-heavy-ball", "eq-heavy-ball-mode", "eq-companion")
def check_heavy_ball(rng):
    H, h, Q, best = bowl(rng)
    rate, gamma = rng.uniform(0.05, 0.5), rng.uniform(0, 0.95)
    theta, velocity = rng.normal(size=4), np.zeros(4)
    c = [Q.T @ (theta - best)] * 2
    for _ in range(12):
        velocity = gamma * velocity - rate * H @ (theta - best)
        theta = theta + velocity
        c.append((1 + gamma - rate * h) * c[-1] - gamma * c[-2])
        assert np.allclose(Q.T @ (theta - best), c[-1])
        for j in range(4):
            M = np.array([[1 + gamma - rate * h[j], -gamma], [1, 0]])
            assert np.allclose(M @ [c[-2][j], c[-3][j]], [c[-1][j], c[-2][j]])


@checks("eq-characteristic", "eq-modulus", "eq-momentum-stability")
def check_spectrum(rng):
    for gamma, eta_h in zip(rng.uniform(0.01, 0.95, size=100), rng.uniform(0.01, 4.5, size=100)):
        M = np.array([[1 + gamma - eta_h, -gamma], [1, 0]])
        r = np.linalg.eigvals(M)
        assert np.allclose(r**2 - (1 + gamma - eta_h) * r + gamma, 0)
        if (1 - gamma**0.5) ** 2 < eta_h < (1 + gamma**0.5) ** 2:
            assert np.allclose(np.abs(r), gamma**0.5)
        assert (np.abs(r).max() < 1) == (eta_h < 2 * (1 + gamma))


@checks("eq-disc")
def check_disc(rng):
    for rho, share, eta_h in rng.uniform(0.02, 0.98, size=(200, 3)) * [1, 1, 4]:
        gamma = share * rho**2
        inside = (1 - rho) * (1 - gamma / rho) <= eta_h <= (1 + rho) * (1 + gamma / rho)
        assert inside == (np.abs(roots(eta_h, gamma)).max() <= rho)


@checks("eq-kappa-bound", "eq-best-momentum")
def check_best_momentum(rng):
    mu, beta = rng.uniform(0.01, 0.3), 1.0
    kappa = beta / mu
    best = (kappa**0.5 - 1) / (kappa**0.5 + 1)

    def worst(rate, gamma):
        return max(np.abs(roots(rate * x, gamma)).max() for x in (mu, beta))

    assert np.isclose(worst(4 / (beta**0.5 + mu**0.5) ** 2, best**2), best, atol=1e-6)
    for rate, gamma in zip(rng.uniform(0.01, 4, size=200), rng.uniform(0, 0.99, size=200)):
        rho = worst(rate, gamma)
        assert rho >= best - 1e-9
        if rho < 1 and gamma < rho**2 * 0.999:
            middle = (1 + rho) * (1 + gamma / rho) / ((1 - rho) * (1 - gamma / rho))
            assert kappa <= middle * (1 + 1e-9)
            assert middle <= ((1 + rho) / (1 - rho)) ** 2 * (1 + 1e-9)


@checks("eq-momentum-factor", "eq-momentum-floor")
def check_momentum_floor(rng):
    h, s2, rate, gamma = rng.uniform(0.3, 2), rng.uniform(0.1, 2), rng.uniform(0.01, 0.5), 0.7
    a = 1 + gamma - rate * h
    M, Z = np.array([[a, -gamma], [1, 0]]), np.zeros((2, 2))
    for _ in range(20000 if rate < 0.02 else 4000):  # the covariance of (c_t, c_{t-1})
        Z = M @ Z @ M.T + np.diag([rate**2 * s2, 0])
    factor = (1 + gamma) / ((1 - gamma) * (2 * (1 + gamma) - rate * h))
    assert np.isclose(Z[0, 0], rate * s2 / h * factor)
    whole = 1 - a**2 - gamma**2 + 2 * a**2 * gamma / (1 + gamma)
    middle = 1 - gamma**2 - a**2 * (1 - gamma) / (1 + gamma)
    last = (1 - gamma) / (1 + gamma) * rate * h * (2 * (1 + gamma) - rate * h)
    assert np.allclose([whole, middle], last)
    tiny = 1e-6 / h
    exact = tiny * (1 + gamma) / ((1 - gamma) * (2 * (1 + gamma) - tiny * h))
    assert np.isclose(exact, tiny / (1 - gamma) / 2, rtol=1e-5)  # the effective learning rate


@checks("eq-smooth", "eq-descent-lemma", "eq-self-bound", "eq-strong", "eq-pl", "eq-convex")
def check_shape_of_the_loss(rng):
    loss, each, beta, mu, sigma2, best = ridge_problem(rng)

    def slope(theta):
        return each(theta).mean(axis=0)

    for a, b in rng.normal(size=(50, 2, 3)) * 2:
        flat = loss(a) + slope(a) @ (b - a)
        square = (b - a) @ (b - a)
        assert np.linalg.norm(slope(a) - slope(b)) <= beta * np.sqrt(square)
        assert flat + mu / 2 * square <= loss(b) <= flat + beta / 2 * square
        excess, steep = loss(a) - loss(best), slope(a) @ slope(a)
        assert 2 * mu * excess <= steep <= 2 * beta * excess
        assert loss(best) >= loss(a) + slope(a) @ (best - a)


@checks("eq-noise-bound", "eq-one-step", "eq-strong-step", "eq-distance", "eq-convex-step")
def check_one_step(rng):
    loss, each, beta, mu, sigma2, best = ridge_problem(rng)
    for theta in rng.normal(size=(30, 3)) * 2:
        g, rate = each(theta), rng.uniform(0, 1 / beta)
        slope, excess, offset = g.mean(axis=0), loss(theta) - loss(best), theta - best
        assert np.mean(np.sum((g - slope) ** 2, axis=1)) <= sigma2
        after = np.mean([loss(theta - rate * one) for one in g])
        gain = rate * (1 - rate * beta / 2) * slope @ slope
        assert after <= loss(theta) - gain + rate**2 * beta * sigma2 / 2
        assert after - loss(best) <= (1 - rate * mu) * excess + rate**2 * beta * sigma2 / 2
        distance = np.mean(np.sum((offset - rate * g) ** 2, axis=1))
        square = np.mean(np.sum(g**2, axis=1))
        expanded = offset @ offset - 2 * rate * slope @ offset + rate**2 * square
        assert np.isclose(distance, expanded)
        if rate <= 1 / (2 * beta):
            assert distance <= offset @ offset - rate * excess + rate**2 * sigma2 + 1e-12


@checks("eq-strong-rate", "eq-decreasing-rate")
def check_strong_rates(rng):
    # The worst sequence that the one-step inequality allows must still obey both bounds.
    beta, mu, noise = rng.uniform(1, 5), rng.uniform(0.05, 0.9), rng.uniform(0.1, 3)
    rate, first = rng.uniform(0.1, 1) / beta, rng.uniform(0.1, 10)
    gap = first
    for t in range(200):
        assert gap <= (1 - rate * mu) ** t * first + rate * beta * noise / (2 * mu) + 1e-12
        gap = (1 - rate * mu) * gap + rate**2 * beta * noise / 2
    t0, gap = 2 * beta / mu, first
    C = max(t0 * first, 2 * beta * noise / mu**2)
    for t in range(500):
        assert gap <= C / (t + t0) * (1 + 1e-12)
        falling = 2 / (mu * (t + t0))
        assert falling <= 1 / beta + 1e-12
        gap = (1 - falling * mu) * gap + falling**2 * beta * noise / 2


@checks("eq-convex-rate", "eq-nonconvex-rate")
def check_whole_runs(rng):
    # The exact mean over every sequence of three single examples, from a random start.
    X, y = data(rng, n=5)

    def loss(theta):
        return logistic(theta, X, y)

    def each(theta):
        return each_gradient(theta, X, y)

    beta = np.linalg.eigvalsh(X.T @ X / 20).max()
    sigma2, T, start = np.mean(np.sum(X**2, axis=1)), 3, rng.normal(size=3)
    rate = rng.uniform(0.1, 0.5) / beta
    paths = [[start]]
    for _ in range(T):
        paths = [path + [path[-1] - rate * g] for path in paths for g in each(path[-1])]
    mean_point = np.mean([loss(np.mean(path[:-1], axis=0)) for path in paths])
    best = start.copy()
    for _ in range(3000):
        best = best - each(best).mean(axis=0) / beta
    bound = np.sum((start - best) ** 2) / (rate * T) + rate * sigma2
    assert mean_point - loss(best) <= bound
    slopes = np.mean([[np.sum(each(p).mean(axis=0) ** 2) for p in path[:-1]] for path in paths])
    assert slopes <= 2 * (loss(start) - 0) / (rate * T) + rate * beta * sigma2  # no loss is below 0


@checks("eq-convex-best", "eq-nonconvex-best")
def check_best_choice(rng):
    distance, sigma, beta, gap, B, T = *rng.uniform(0.2, 3, size=4), 8, 1000

    def convex(rate):
        return distance**2 / (rate * T) + rate * sigma**2 / B

    best = distance / sigma * np.sqrt(B / T)
    assert np.isclose(convex(best), 2 * sigma * distance / np.sqrt(B * T))

    def general(rate):
        return 2 * gap / (rate * T) + rate * beta * sigma**2 / B

    chosen = np.sqrt(2 * gap * B / (beta * sigma**2 * T))
    assert np.isclose(general(chosen), 2 * np.sqrt(2 * beta * sigma**2 * gap / (B * T)))
    for factor in (0.5, 0.9, 1.1, 2):
        assert convex(best) < convex(factor * best) and general(chosen) < general(factor * chosen)


# --- fine-tuning as optimization -----------------------------------------------------------


@checks("eq-blend")
def check_blend(rng):
    H, h, Q, goal = bowl(rng)
    theta = start = rng.normal(size=4)
    rate, t = 0.3, 9
    for _ in range(t):
        theta = theta - rate * H @ (theta - goal)
    left = (1 - rate * h) ** t
    assert np.allclose(Q.T @ theta, left * (Q.T @ start) + (1 - left) * (Q.T @ goal))


@checks("eq-frozen-directions", "eq-nearest")
def check_nearest_solution(rng):
    X, y, start = rng.normal(size=(3, 7)), rng.normal(size=3), rng.normal(size=7)
    theta, P = start.copy(), np.linalg.pinv(X) @ X
    rate = 3 / np.linalg.eigvalsh(X @ X.T).max()
    for _ in range(5000):
        theta = theta - rate * X.T @ (X @ theta - y) / 3
    assert np.allclose((np.eye(7) - P) @ theta, (np.eye(7) - P) @ start)
    nearest = start + np.linalg.pinv(X) @ (y - X @ start)
    assert np.allclose(X @ nearest, y) and np.allclose(theta, nearest, atol=1e-5)
    other = nearest + (np.eye(7) - P) @ rng.normal(size=7)
    assert np.allclose(X @ other, y)
    assert np.linalg.norm(other - start) > np.linalg.norm(nearest - start)


@checks("eq-worth")
def check_worth_of_labels(rng):
    n, d = 4, 10
    error = rng.normal(size=d)
    left = [error - np.linalg.pinv(X) @ X @ error for X in rng.normal(size=(3000, n, d))]
    assert np.isclose(
        np.mean(np.sum(np.square(left), axis=1)), (1 - n / d) * error @ error, rtol=0.04
    )


def network(theta, X, inputs=3, width=4):
    W, a = theta[: inputs * width].reshape(inputs, width), theta[inputs * width :]
    return np.tanh(X @ W) @ a


def network_jacobian(theta, X, inputs=3, width=4):
    W, a = theta[: inputs * width].reshape(inputs, width), theta[inputs * width :]
    hidden = np.tanh(X @ W)
    return np.hstack([np.einsum("ij,ik->ijk", X, a * (1 - hidden**2)).reshape(len(X), -1), hidden])


@checks("eq-network-jacobian", "eq-network-gradient", "eq-linearized", "eq-linear-error")
def check_network(rng):
    X, y, theta = rng.normal(size=(6, 3)), rng.normal(size=6), rng.normal(size=16)
    J = network_jacobian(theta, X)
    assert np.allclose(numerical(lambda t: network(t, X), theta).T, J, atol=1e-8)

    def loss(t):
        return np.mean((network(t, X) - y) ** 2) / 2

    assert np.allclose(numerical(loss, theta), J.T @ (network(theta, X) - y) / 6, atol=1e-8)
    u = rng.normal(size=16)

    def miss(s):
        return network(theta + s * u, X) - network(theta, X) - s * J @ u

    second = (
        network(theta + 1e-3 * u, X) + network(theta - 1e-3 * u, X) - 2 * network(theta, X)
    ) / 1e-6
    assert np.allclose(miss(1e-3), 1e-6 / 2 * second, atol=1e-7)  # quadratic in the distance
    s = 0.01
    line = np.linspace(0, s, 21)
    bends = [network(theta + (x + 1e-4) * u, X) + network(theta + (x - 1e-4) * u, X)
             - 2 * network(theta + x * u, X) for x in line]  # fmt: skip
    M = np.abs(np.array(bends) / 1e-8).max(axis=0)  # along u, so the distance is s
    assert np.all(np.abs(miss(s)) <= M / 2 * s**2 * 1.01 + 1e-9)


@checks("eq-kernel", "eq-kernel-modes")
def check_kernel(rng):
    J, start, y, rate = rng.normal(size=(5, 16)), rng.normal(size=5), rng.normal(size=5), 0.02
    K, move, residual = J @ J.T, np.zeros(16), start - y
    k, Q = np.linalg.eigh(K)
    for t in range(20):
        assert np.allclose(start + J @ move - y, residual)
        assert np.allclose(Q.T @ residual, (1 - rate * k / 5) ** t * (Q.T @ (start - y)))
        move = move - rate * J.T @ (start + J @ move - y) / 5
        residual = (np.eye(5) - rate / 5 * K) @ residual


@checks("eq-penalties", "eq-penalty-solutions", "eq-penalty-blend")
def check_penalties(rng):
    H, h, Q, goal = bowl(rng)
    start, strength = rng.normal(size=4), rng.uniform(0.05, 3)

    def loss(theta):
        return 0.5 * (theta - goal) @ H @ (theta - goal)

    def l2(theta):
        return loss(theta) + strength / 2 * theta @ theta

    def sp(theta):
        return loss(theta) + strength / 2 * (theta - start) @ (theta - start)

    inverse = np.linalg.inv(H + strength * np.eye(4))
    at_l2, at_sp = inverse @ H @ goal, inverse @ (H @ goal + strength * start)
    assert np.allclose(numerical(l2, at_l2), 0, atol=1e-8)
    assert np.allclose(numerical(sp, at_sp), 0, atol=1e-8)
    share = strength / (h + strength)
    assert np.allclose(Q.T @ at_sp, (1 - share) * (Q.T @ goal) + share * (Q.T @ start))
    assert np.allclose(Q.T @ at_l2, (1 - share) * (Q.T @ goal))


@checks("eq-stopping-as-penalty")
def check_stopping(rng):
    rate, t = rng.uniform(0.01, 0.5), int(rng.integers(5, 200))
    h = np.linspace(0, 1 / rate, 500)
    stopped, strength = (1 - rate * h) ** t, 1 / (rate * t)
    penalized = strength / (h + strength)
    assert np.abs(stopped - penalized).max() < 0.25
    small = 1e-4 / (rate * t)  # the two agree to first order in the curvature
    assert np.isclose(1 - (1 - rate * small) ** t, small / (small + strength), rtol=1e-3)


@checks("eq-layerwise", "eq-rescaled-bowl")
def check_layerwise(rng):
    H, h, Q, best = bowl(rng)
    rates = rng.uniform(0.02, 0.6, size=4)
    root = np.diag(np.sqrt(rates))
    error = rng.normal(size=4)
    phi = np.linalg.solve(root, error)
    for _ in range(10):
        error = error - np.diag(rates) @ H @ error
        phi = (np.eye(4) - root @ H @ root) @ phi
        assert np.allclose(error, root @ phi)


@checks("eq-who-works")
def check_who_works(rng):
    X, y = data(rng)
    theta, rates = rng.normal(size=3), rng.uniform(0.1, 1, size=3) * 1e-5
    slope = each_gradient(theta, X, y).mean(axis=0)
    drop = logistic(theta, X, y) - logistic(theta - rates * slope, X, y)
    assert np.isclose(drop, np.sum(rates * slope**2), rtol=1e-3)


@checks("eq-forgetting-bound", "eq-halfway")
def check_forgetting(rng):
    HA, h, _, at_a = bowl(rng)
    HB, _, _, at_b = bowl(rng)

    def A(theta):
        return 0.5 * (theta - at_a) @ HA @ (theta - at_a)

    def B(theta):
        return 0.5 * (theta - at_b) @ HB @ (theta - at_b)

    for alpha in rng.uniform(0, 1, size=10):
        theta = (1 - alpha) * at_a + alpha * at_b
        assert A(theta) <= h.max() / 2 * np.sum((theta - at_a) ** 2)
        assert np.isclose(A(theta) / A(at_b), alpha**2)
        assert np.isclose(B(theta) / B(at_a), (1 - alpha) ** 2)


@checks(
    "eq-two-layers",
    "eq-two-layer-gradients",
    "eq-frozen-features",
    "eq-outside-error",
    "eq-balance",
    "eq-head-first",
)
def check_two_layers(rng):
    d, k, m = 7, 2, 4
    S = np.linalg.qr(rng.normal(size=(d, m)))[0]
    B0, v0, truth = (
        np.linalg.qr(rng.normal(size=(d, k)))[0].T,
        rng.normal(size=k),
        rng.normal(size=k),
    )
    X = rng.normal(size=(15, m)) @ S.T
    y, w = X @ B0.T @ truth, B0.T @ truth
    assert np.allclose([v0 @ B0 @ x for x in X], X @ (B0.T @ v0))

    def loss(p):
        return np.mean((X @ p[k:].reshape(k, d).T @ p[:k] - y) ** 2) / 2

    G = X.T @ (X @ B0.T @ v0 - y) / len(y)
    slopes = numerical(loss, np.concatenate([v0, B0.ravel()]))
    assert np.allclose(slopes[:k], B0 @ G, atol=1e-8)
    assert np.allclose(slopes[k:].reshape(k, d), np.outer(v0, G), atol=1e-8)
    B, v, rate = B0, v0, 1e-4
    for _ in range(1000):
        G = X.T @ (X @ B.T @ v - y) / len(y)
        B, v = B - rate * np.outer(v, G), v - rate * B @ G
    outside = np.eye(d) - S @ S.T
    assert np.allclose(B @ outside, B0 @ outside)
    assert np.allclose(outside @ (B.T @ v - w), outside @ B0.T @ (v - truth))
    drift = (np.outer(v, v) - B @ B.T) - (np.outer(v0, v0) - B0 @ B0.T)
    moved = np.outer(v, v) - np.outer(v0, v0)
    assert np.abs(drift).max() < 0.02 * np.abs(moved).max()  # of the size of the step
    head = np.linalg.lstsq(X @ B0.T, y, rcond=None)[0]
    G = X.T @ (X @ B0.T @ head - y) / len(y)
    assert np.allclose(head, truth) and np.allclose([*(B0 @ G), *np.outer(head, G).ravel()], 0)


def adam(theta, gradients, rate, decay, decoupled, gamma1=0.9, gamma2=0.999):
    m = s = np.zeros_like(theta)
    for t, g in enumerate(gradients, start=1):
        g = g if decoupled else g + decay * theta
        m, s = gamma1 * m + (1 - gamma1) * g, gamma2 * s + (1 - gamma2) * g**2
        step = m / (1 - gamma1**t) / np.sqrt(s / (1 - gamma2**t))
        theta = (1 - rate * decay * decoupled) * theta - rate * step
    return theta


@checks("eq-adam-means", "eq-adam-step", "eq-first-step")
def check_adam(rng):
    theta, gradients = rng.normal(size=3), rng.normal(size=(12, 3))
    first = adam(theta, gradients[:1], 0.01, 0, True)
    assert np.allclose(first, theta - 0.01 * np.sign(gradients[0]))
    assert np.allclose(
        adam(theta, 50 * gradients, 0.01, 0, True), adam(theta, gradients, 0.01, 0, True)
    )
    constant = np.tile(gradients[0], (12, 1))  # the corrected means of a constant are the constant
    assert np.allclose(adam(theta, constant, 0.01, 0, True), theta - 0.12 * np.sign(gradients[0]))
    weights = 0.1 * 0.9 ** np.arange(11, -1, -1)  # the running mean written out
    m = 0
    for g in gradients:
        m = 0.9 * m + 0.1 * g
    assert np.allclose(m, weights @ gradients) and np.isclose(weights.sum(), 1 - 0.9**12)


@checks("eq-sgd-decay", "eq-adamw")
def check_decay(rng):
    theta, g = rng.normal(size=(2, 4))
    rate, decay = rng.uniform(0.01, 0.2), rng.uniform(0.01, 1)
    assert np.allclose(theta - rate * (g + decay * theta), (1 - rate * decay) * theta - rate * g)
    keras = pytest.importorskip("keras")
    gradients = rng.normal(size=(8, 4))
    variable = keras.Variable(theta, dtype="float64")
    optimizer = keras.optimizers.AdamW(rate, weight_decay=decay, epsilon=1e-12)
    for one in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(one)], [variable])
    assert np.allclose(adam(theta, gradients, rate, decay, True), variable.numpy(), atol=1e-4)


@checks("eq-coupled-decay")
def check_coupled_decay(rng):
    size, rate, decay, steps = rng.uniform(0.5, 5), 1e-3, 0.1, 1000
    noise = size * rng.choice([-1.0, 1.0], size=(steps, 2000))
    coupled = adam(np.ones(2000), noise, rate, decay, False).mean()
    decoupled = adam(np.ones(2000), noise, rate, decay, True).mean()
    assert np.isclose(coupled, (1 - rate * decay / size) ** steps, atol=0.01)
    assert np.isclose(decoupled, (1 - rate * decay) ** steps, atol=0.01)


# --- the checks, and the pages ----------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("check", dict.fromkeys(CHECKS.values()), ids=lambda check: check.__name__)
def test_identity(check, seed):
    check(np.random.default_rng(seed))


def equations(page):
    """Return the labels of the displayed equations, None for one without, and the code."""
    cells = nbformat.read(page, as_version=4).cells
    text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    blocks = re.findall(
        r"^\$\$\n.*?^\$\$(?: \((eq-[a-z0-9-]+)\))?$", text, re.DOTALL | re.MULTILINE
    )
    assert text.count("$$") == 2 * len(blocks), f"{page.name}: a $$ does not stand on its own line"
    return [label or None for label in blocks], text, code


def problems_of(labels, text, code):
    """Yield what is wrong with a page's equations."""
    commented = set(re.findall(r"\beq-[a-z0-9-]+", " ".join(re.findall(r"#.*", code))))
    if None in labels:
        yield "a displayed equation has no label"
    for label in filter(None, labels):
        if label not in CHECKS:
            yield f"{label} has no check in this file"
        if label not in commented:
            yield f"no cell of the page says that it checks {label}"
    for reference in set(re.findall(r"\{eq\}`([^`]+)`", text)) - CHECKS.keys():
        yield f"{reference} is referred to and does not exist"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_equation_has_a_label_a_check_and_a_cell(page):
    labels, text, code = equations(page)
    assert labels
    assert not list(problems_of(labels, text, code))


def test_labels_are_unique_and_no_check_is_left_over():
    labels = [label for page in PAGES for label in equations(page)[0]]
    assert len(labels) == len(set(labels))
    assert set(labels) == CHECKS.keys()


def test_a_new_equation_without_a_check_is_found():
    labels = ["eq-update", "eq-invented", None]
    found = "\n".join(problems_of(labels, "see {eq}`eq-lost`", "x = 1  # eq-update"))
    for message in ("no label", "eq-invented has no check", "checks eq-invented", "eq-lost"):
        assert message in found
    assert "eq-update" not in found
