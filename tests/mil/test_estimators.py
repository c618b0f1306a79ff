"""Estimators: what they learn, scikit-learn's habits, files, and what they refuse before any training."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_predict, cross_val_score
from sklearn.utils import estimator_checks

import mil
from mil import MILClassifier, MILRegressor, MILSurvival, head_names
from mil.metrics import auroc, estimates
from tests.mil.bags import flat_bags, make_bag, saved, two_scale_bags
from zoomfeat.errors import (
    BagInvalidError,
    CheckpointMismatchError,
    ConfigurationError,
    MagnificationError,
    ZoomfeatError,
)

QUICK = {"epochs": 8, "width": 16}
HARD_HEADS = ("abmil", "abmil-gated", "clam-sb", "dsmil", "dtfd")


@pytest.fixture(scope="module")
def easy():
    return flat_bags(80, seed=1)


@pytest.fixture(scope="module")
def fitted(easy):
    return MILClassifier(**QUICK).fit(*easy)


def weights_of(model):
    return model.network_.state_dict()


@pytest.mark.parametrize("head", HARD_HEADS)
def test_heads_learn_what_one_instance_decides(head, easy):
    model = MILClassifier(head=head, epochs=25, learning_rate=3e-3, seed=1).fit(*easy)
    bags, labels = flat_bags(100, seed=2)
    assert roc_auc_score(labels, model.decision_function(bags)) > 0.95
    positive = [bag for bag, label in zip(bags, labels, strict=True) if label and len(bag) > 4]
    ranks = [(model.attention(bag)[""] >= model.attention(bag)[""][0]).mean() for bag in positive[:20]]
    assert np.mean(ranks) < 0.25, "the instance that decides is among those attended most"


@pytest.mark.parametrize("head", head_names())
def test_every_head_trains_classifies_and_comes_back_from_a_file(head, tmp_path):
    bags, _ = flat_bags(18, sizes=(1, 6))
    labels = np.array(["benign", "in situ", "invasive"] * 6)
    model = MILClassifier(head=head, epochs=1, width=16).fit(bags, labels)
    chances = model.predict_proba(bags)
    assert chances.shape == (18, 3)
    np.testing.assert_allclose(chances.sum(axis=1), 1)
    assert model.decision_function(bags).shape == (18, 3)
    assert set(model.predict(bags)) <= {"benign", "in situ", "invasive"}
    model.save(tmp_path / "model.safetensors")
    again = mil.load_model(tmp_path / "model.safetensors")
    assert type(again) is MILClassifier
    np.testing.assert_array_equal(again.predict_proba(bags), chances)
    np.testing.assert_array_equal(again.classes_, model.classes_)
    assert again.get_params() == model.get_params()


def test_two_runs_with_one_seed_are_equal_to_the_bit(easy):
    settings = {**QUICK, "instance_dropout": 0.3, "max_instances": 5, "balance": "sampling", "head": "dtfd"}
    before = torch.random.get_rng_state()
    first, second = (MILClassifier(seed=7, **settings).fit(*easy) for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state()), "the caller's random state is left alone"
    other = MILClassifier(seed=8, **settings).fit(*easy)
    for name, tensor in weights_of(first).items():
        assert torch.equal(tensor, weights_of(second)[name])
    np.testing.assert_array_equal(first.predict_proba(easy[0]), second.predict_proba(easy[0]))
    assert any(not torch.equal(tensor, weights_of(other)[name]) for name, tensor in weights_of(first).items())


def test_bags_on_disk_train_to_the_same_bit_as_bags_in_memory(tmp_path):
    rng = np.random.default_rng(0)
    bags = [make_bag(rng.normal(size=(9, 3)), rng.normal(size=(1, 2)), slide_id=f"s.{n}") for n in range(8)]
    paths = [saved(bag, tmp_path) for bag in bags]
    labels = np.arange(8) % 2
    for fusion in ("early", "late"):
        models = [
            MILClassifier(fusion=fusion, batch_size=3, **QUICK).fit(sources, labels)
            for sources in (bags, paths, [mil.load_instances(bag) for bag in bags])
        ]
        assert models[0].encoder_ == models[1].encoder_ == {"name": "encoder", "weights_hash": "a1"}
        for model in models[1:]:
            for name, tensor in weights_of(models[0]).items():
                assert torch.equal(tensor, weights_of(model)[name])


def test_predictions_do_not_depend_on_the_batch(fitted, easy):
    bags = easy[0]
    one = np.concatenate([fitted.predict_proba([bag]) for bag in bags])
    np.testing.assert_allclose(fitted.predict_proba(bags), one, atol=1e-5)


def test_a_bag_with_one_instance(fitted):
    bag = np.zeros((1, 8), np.float32)
    assert fitted.predict_proba([bag]).shape == (1, 2)
    assert fitted.attention(bag)[""].tolist() == [1.0]
    singles = [np.full((1, 4), value, np.float32) for value in range(6)]
    MILClassifier(**QUICK).fit(singles, [0, 1] * 3)


def test_attention_at_each_magnification():
    rng = np.random.default_rng(0)
    bags = [make_bag(rng.normal(size=(20, 3)), rng.normal(size=(2, 2))) for _ in range(6)]
    for head in ("abmil", "dsmil", "transmil"):
        early = MILClassifier(head=head, epochs=1, width=16).fit(bags, [0, 1] * 3).attention(bags[0])
        assert {name: len(values) for name, values in early.items()} == {"20x": 20, "5x": 2}
        np.testing.assert_allclose(early["5x"], [early["20x"][:16].sum(), early["20x"][16:].sum()], rtol=1e-5)
        late = MILClassifier(head=head, fusion="late", epochs=1, width=16).fit(bags, [0, 1] * 3).attention(bags[0])
        assert {name: round(float(values.sum()), 4) for name, values in late.items()} == {"20x": 1, "5x": 1}
    single = MILClassifier(scales=["5x"], **QUICK).fit(bags, [0, 1] * 3)
    assert single.scales_ == ("5x",)
    assert single.n_features_in_ == 2
    assert {name: len(values) for name, values in single.attention(bags[0]).items()} == {"5x": 2}


# scikit-learn's habits


def test_checks_of_scikit_learn():
    for kind in (MILClassifier, MILRegressor, MILSurvival):
        estimator = kind()
        for check in (
            estimator_checks.check_estimator_cloneable,
            estimator_checks.check_estimator_repr,
            estimator_checks.check_no_attributes_set_in_init,
            estimator_checks.check_parameters_default_constructible,
            estimator_checks.check_get_params_invariance,
            estimator_checks.check_set_params,
            estimator_checks.check_valid_tag_types,
            estimator_checks.check_estimator_tags_renamed,
        ):
            check(kind.__name__, estimator)
    assert estimator_checks.is_classifier(MILClassifier())
    assert estimator_checks.is_regressor(MILRegressor())


def test_fit_changes_no_parameter_and_returns_the_estimator(easy):
    model = MILClassifier(**QUICK)
    before = clone(model).get_params()
    assert model.fit(*easy) is model
    assert model.get_params() == before
    assert model.n_features_in_ == 8
    assert not hasattr(clone(model), "network_")


def test_cross_validation_and_grid_search(easy):
    bags, labels = easy
    patients = np.arange(len(bags)) // 2
    model = MILClassifier(epochs=10, batch_size=4, learning_rate=5e-3, width=16)
    scores = cross_val_score(model, bags, labels, groups=patients, cv=GroupKFold(3), scoring="roc_auc")
    assert scores.shape == (3,)
    assert scores.mean() > 0.8
    chances = cross_val_predict(model, bags, labels, cv=3, method="predict_proba")
    assert chances.shape == (80, 2)
    search = GridSearchCV(model, {"head": ["mean", "max"]}, cv=2, scoring="roc_auc").fit(bags, labels)
    assert search.best_params_ == {"head": "max"}, "the mean drowns the one instance that decides"
    assert search.best_estimator_.predict(bags[:3]).shape == (3,)
    regression = cross_val_score(MILRegressor(**QUICK), bags, labels.astype(float), cv=2)
    assert np.isfinite(regression).all()


def test_not_fitted_yet(easy, tmp_path):
    model = MILClassifier()
    for call in (model.predict, model.predict_proba, model.decision_function):
        with pytest.raises(NotFittedError):
            call(easy[0])
    with pytest.raises(NotFittedError):
        model.save(tmp_path / "model.safetensors")
    with pytest.raises(NotFittedError):
        model.attention(easy[0][0])


# Training


def test_features_are_standardised_inside(easy):
    bags, labels = easy
    stretched = [bag * np.array([1e3, 1e-3] * 4, np.float32) + np.float32(50) for bag in bags]
    model = MILClassifier(**QUICK).fit(bags, labels)
    other = MILClassifier(**QUICK).fit(stretched, labels)
    np.testing.assert_allclose(other.predict_proba(stretched), model.predict_proba(bags), atol=0.02)
    raw = MILClassifier(standardize=False, **QUICK).fit(stretched, labels)
    assert np.abs(raw.predict_proba(stretched) - model.predict_proba(bags)).max() > 0.1


def test_early_stopping_keeps_the_best_epoch_and_never_splits_a_patient():
    rng = np.random.default_rng(0)
    bags = [rng.normal(size=(4, 30)).astype(np.float32) for _ in range(40)]
    labels = rng.permutation(np.arange(40) % 2)  # nothing to learn, so that the validation loss soon rises
    patients = np.arange(40) // 4
    model = MILClassifier(validation=0.25, patience=3, epochs=200, learning_rate=1e-2).fit(
        bags, labels, groups=patients
    )
    losses = [row["validation_loss"] for row in model.history_]
    assert len(losses) < 200
    assert len(losses) - 1 - int(np.argmin(losses)) == 4, "stops after more than `patience` epochs without a better one"
    training, validation = model._inner_split(labels, patients)
    assert not set(patients[training]) & set(patients[validation])
    assert len(training) + len(validation) == 40
    chances = model.predict_proba([bags[place] for place in validation])
    loss = -np.log(chances[np.arange(len(validation)), labels[validation]]).mean()
    np.testing.assert_allclose(loss, min(losses), rtol=1e-4)


def test_class_weights_and_balanced_sampling_raise_the_rare_class():
    bags, labels = flat_bags(200, seed=3, shift=1.0, sizes=(2, 5))
    keep = np.flatnonzero((labels == 0) | (np.arange(200) % 20 == 1))
    bags, labels = [bags[place] for place in keep], labels[keep]
    mean = {
        balance: MILClassifier(balance=balance, epochs=15).fit(bags, labels).predict_proba(bags)[:, 1].mean()
        for balance in ("none", "weights", "sampling")
    }
    assert mean["none"] < 0.2
    assert mean["weights"] > mean["none"] + 0.1
    assert mean["sampling"] > mean["none"] + 0.1


def test_accumulated_batches_are_one_large_batch(easy):
    bags, labels = easy
    settings = {"epochs": 3, "dropout": 0.0, "width": 16, "learning_rate": 1e-2}
    large = MILClassifier(batch_size=16, **settings).fit(bags, labels)
    small = MILClassifier(batch_size=4, accumulate=4, **settings).fit(bags, labels)
    np.testing.assert_allclose(large.predict_proba(bags), small.predict_proba(bags), atol=1e-4)


def test_mixed_precision_learns_the_same_and_is_equal_to_the_bit(easy):
    bags, labels = easy
    shifted = [bag + np.float32(100) for bag in bags]  # a mean that bfloat16 has no digits left beside
    settings = {"head": "abmil", "epochs": 25, "learning_rate": 3e-3}
    first, second = (MILClassifier(precision="mixed", **settings).fit(shifted, labels) for _ in range(2))
    whole = MILClassifier(precision="float32", **settings).fit(shifted, labels)
    for name, tensor in weights_of(first).items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, weights_of(second)[name])
    assert any(not torch.equal(tensor, weights_of(whole)[name]) for name, tensor in weights_of(first).items())
    test_bags, test_labels = flat_bags(60, seed=5)
    chances = first.predict_proba([bag + np.float32(100) for bag in test_bags])[:, 1]
    assert roc_auc_score(test_labels, chances) > 0.95


def test_training_that_diverges_says_so(easy):
    bags, labels = easy
    with pytest.raises(ConfigurationError, match=r"training diverged: the loss of epoch \d+ is nan.*learning_rate"):
        MILRegressor(head="mean", learning_rate=1e30, epochs=5, width=16).fit(bags, labels)


def test_a_progress_bar_where_asked_for(easy, capsys):
    MILClassifier(verbose=True, epochs=1, width=16).fit(*easy)
    assert "training" in capsys.readouterr().err
    MILClassifier(epochs=1, width=16).fit(*easy)
    assert not capsys.readouterr().err


# Numbers and survival


def test_regression_recovers_a_score():
    rng = np.random.default_rng(0)
    bags = [rng.normal(loc=rng.normal(size=5), size=(rng.integers(5, 20), 5)).astype(np.float32) for _ in range(150)]
    scores = np.array([40 + 10 * bag[:, 0].mean() for bag in bags])
    model = MILRegressor(head="mean", epochs=60, learning_rate=3e-3).fit(bags[:100], scores[:100])
    predicted = model.predict(bags[100:])
    assert model.score(bags[100:], scores[100:]) > 0.85
    assert np.corrcoef(predicted, scores[100:])[0, 1] > 0.92
    assert 30 < predicted.mean() < 50, "in the unit of the targets"


def test_survival_orders_by_hazard(tmp_path):
    rng = np.random.default_rng(1)
    risk = rng.normal(size=200)
    bags = [rng.normal(loc=[2 * value, 0, 0], size=(rng.integers(3, 12), 3)).astype(np.float32) for value in risk]
    times = rng.exponential(np.exp(-1.5 * risk)) + 1e-3
    censored = rng.exponential(2.0, size=200) + 1e-3
    y = np.stack([np.minimum(times, censored), times <= censored], axis=1)
    model = MILSurvival(head="mean", epochs=20, batch_size=32, learning_rate=5e-3).fit(bags[:120], y[:120])
    assert model.score(bags[120:], y[120:]) > 0.75
    assert np.corrcoef(model.predict(bags[120:]), risk[120:])[0, 1] > 0.8
    model.save(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(MILSurvival.load(tmp_path / "model.safetensors").predict(bags), model.predict(bags))


def test_concordance_agrees_with_counting_pairs():
    rng = np.random.default_rng(2)
    bags = [rng.normal(size=(3, 2)).astype(np.float32) for _ in range(25)]
    y = np.stack([rng.integers(1, 15, size=25), rng.integers(0, 2, size=25)], axis=1).astype(float)
    model = MILSurvival(head="mean", epochs=1).fit(bags, y)
    risk = model.predict(bags)
    comparable = [(a, b) for a in range(25) for b in range(25) if y[a, 1] and y[a, 0] < y[b, 0]]
    # A patient with an event at a time also comes before one censored at that time.
    comparable += [(a, b) for a in range(25) for b in range(25) if y[a, 1] and not y[b, 1] and y[a, 0] == y[b, 0]]
    expected = np.mean([risk[a] > risk[b] for a, b in comparable])
    assert model.score(bags, y) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("head", ["clam-sb", "dsmil", "dtfd"])
def test_heads_with_further_losses_take_numbers_and_times(head, easy):
    bags, labels = easy
    MILRegressor(head=head, **QUICK).fit(bags, labels * 2.5)
    MILSurvival(head=head, **QUICK).fit(bags, np.stack([labels + 1.0, np.ones(len(labels))], axis=1))


# Files


def test_files_that_are_no_models(fitted, tmp_path):
    from safetensors.torch import save_file

    (tmp_path / "noise.safetensors").write_bytes(b"noise")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    fitted.save(tmp_path / "cut.safetensors")
    whole = (tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-50])
    for name in ("noise", "other", "cut", "absent"):
        with pytest.raises(CheckpointMismatchError, match=name):
            mil.load_model(tmp_path / f"{name}.safetensors")
    fitted.save(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointMismatchError, match="holds a MILClassifier, expected a MILRegressor"):
        MILRegressor.load(tmp_path / "model.safetensors")
    with pytest.raises(ZoomfeatError, match="cannot be written"):
        fitted.save(tmp_path / "no folder" / "model.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir() if "tmp" in path.name) == []


@pytest.mark.parametrize("labels", [["a", "b"], [3, 7], [True, False], [np.str_("x"), np.str_("long name")]])
def test_labels_come_back_as_they_were(labels, tmp_path):
    bags, _ = flat_bags(8)
    model = MILClassifier(**QUICK).fit(bags, labels * 4)
    model.save(tmp_path / "m.safetensors")
    again = MILClassifier.load(tmp_path / "m.safetensors")
    assert again.classes_.dtype == model.classes_.dtype
    assert set(again.predict(bags)) <= set(labels)


# Bad input, each refused before any training


@pytest.fixture
def no_training(monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("training began")

    monkeypatch.setattr("mil.base.train", refuse)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"y": [1] * 6}, "all 6 bags have the label 1, expected at least two classes"),
        ({"y": [0, 1]}, r"shape \(2,\) for 6 bags"),
        ({"y": [0, 1, None] * 2}, "2 targets are missing, the first is that of bag 2"),
        ({"y": [0.5, 1.0] * 3}, "MILRegressor"),
        ({"groups": [1, 2]}, r"groups of shape \(2,\)"),
        ({"head": "attention"}, "no head 'attention'"),
        ({"head_options": {"hands": 3}}, "hands"),
        ({"fusion": "middle"}, "early, late"),
        ({"balance": "both"}, "none, weights, sampling"),
        ({"epochs": 0}, "epochs=0"),
        ({"precision": "half"}, "auto, float32, mixed"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"max_instances": 0}, "max_instances=0"),
        ({"validation": 0.5, "groups": [1] * 6}, "validation=0.5 of 1 patients"),
        ({"device": "abacus"}, "abacus"),
    ],
)
def test_bad_settings(change, match):
    bags, labels = flat_bags(6)
    y, groups = change.pop("y", labels), change.pop("groups", None)
    with pytest.raises(ConfigurationError, match=match):
        MILClassifier(**change).fit(bags, y, groups=groups)


@pytest.mark.usefixtures("no_training")
def test_bad_bags(tmp_path):
    bags, labels = flat_bags(6)
    broken = bags[3].copy()
    broken[0, 0] = np.nan
    np.save(tmp_path / "slide-3.npy", broken)
    for validation in (0.0, 0.34):
        with pytest.raises(BagInvalidError, match=r"slide-3\.npy: 1 of .* not finite"):
            MILClassifier(validation=validation).fit([*bags[:3], tmp_path / "slide-3.npy", *bags[4:]], labels)
    with pytest.raises(ConfigurationError, match="length 5, expected length 8"):
        MILClassifier().fit([*bags[:5], np.ones((3, 5))], labels)
    with pytest.raises(BagInvalidError, match="at least one instance"):
        MILClassifier().fit([*bags[:5], np.ones((0, 8))], labels)
    with pytest.raises(ConfigurationError, match="list of bags"):
        MILClassifier().fit("bags/slide.h5", labels)
    with pytest.raises(MagnificationError, match="20x"):
        MILClassifier(scales=["20x"]).fit(bags, labels)


@pytest.mark.usefixtures("no_training")
def test_bad_numbers_and_times():
    bags, labels = flat_bags(6)
    with pytest.raises(ConfigurationError, match="all 6 targets are 2"):
        MILRegressor().fit(bags, [2.0] * 6)
    with pytest.raises(ConfigurationError, match="finite numbers"):
        MILRegressor().fit(bags, list("abcdef"))
    for y, match in (
        (labels, "survival targets of shape"),
        (np.stack([labels, labels], axis=1), "positive"),
        (np.stack([labels + 1, labels * 0], axis=1), "no bag has an event"),
    ):
        with pytest.raises(ConfigurationError, match=match):
            MILSurvival().fit(bags, y)


def test_prediction_on_bags_of_another_kind():
    rng = np.random.default_rng(0)
    bags = [make_bag(rng.normal(size=(5, 3)), rng.normal(size=(1, 3))) for _ in range(6)]
    model = MILClassifier(**QUICK).fit(bags, [0, 1] * 3)
    other = make_bag(rng.normal(size=(5, 3)), rng.normal(size=(1, 3)), encoder="other")
    retrained = make_bag(rng.normal(size=(5, 3)), rng.normal(size=(1, 3)), weights_hash="b2")
    wide = make_bag(rng.normal(size=(5, 4)), rng.normal(size=(1, 3)), encoder="unknown")
    for call in (lambda bag: model.predict_proba([bag]), model.attention):
        with pytest.raises(ConfigurationError, match=r"encoder other, expected encoder"):
            call(other)
        with pytest.raises(ConfigurationError, match=r"weights_hash 'b2'.*'a1'"):
            call(retrained)
        with pytest.raises(ConfigurationError, match=r"length \[4, 3\], expected \[3, 3\]"):
            call(wide)
        with pytest.raises(MagnificationError, match="5x"):
            call(make_bag(rng.normal(size=(5, 3))))
        with pytest.raises(MagnificationError, match="20x"):
            call(np.ones((4, 6)))
    plain = MILClassifier(**QUICK).fit(*flat_bags(6))
    with pytest.raises(MagnificationError, match="trained on bags without"):
        plain.predict(bags)
    broken = np.full((2, 8), np.nan)
    with pytest.raises(BagInvalidError, match="not finite"):
        plain.predict([broken])


def test_importing_mil_is_cheap():
    code = "import sys, mil; assert not {'torch', 'sklearn', 'torchmil'} & set(sys.modules); print(len(mil.__all__))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 5


def test_logistic_regression_is_no_better_at_one_instance_in_many(easy):
    """The test problem is one for attention: the mean of a bag does not solve it."""
    bags, labels = easy
    means = np.stack([bag.mean(axis=0) for bag in bags])
    assert cross_val_score(LogisticRegression(), means, labels, cv=5, scoring="roc_auc").mean() < 0.97


# Two magnifications at once


@pytest.mark.slow
def test_a_label_that_needs_both_magnifications_is_learnt_from_both():
    """Fused AUROC at least 0.95, each magnification alone below 0.80, on bags that no training saw."""
    bags, labels = two_scale_bags(160, seed=0)
    test_bags, test_labels = two_scale_bags(100, seed=1)
    found = {}
    for name, settings in {
        "20x and 5x": {},
        "20x alone": {"scales": ["20x"]},
        "5x alone": {"scales": ["5x"]},
    }.items():
        model = MILClassifier(epochs=40, **settings).fit(bags, labels)
        chances = model.predict_proba(test_bags)[:, 1]
        areas = {"auroc": lambda weights, chances=chances: auroc(weights, test_labels, chances)}
        found[name] = estimates(areas, len(test_labels), smallest=50)["auroc"]
        print(f"{name}: AUROC {found[name]}")
    assert found["20x and 5x"].value >= 0.95
    assert found["20x alone"].value < 0.80
    assert found["5x alone"].value < 0.80
