from __future__ import annotations

from collections import Counter

from demo_model.batches import JointBatches, vision_batch
from foveate.demo.pictures import Chart, Sign

BATCHES = JointBatches(
    seed=3,
    batch_size=8,
    question_limit=6,
    long_share=0.5,
    first_objects=3,
    curriculum_steps=20,
    several_from=40,
    focus_from=80,
)


def test_a_step_s_batch_depends_on_the_step_alone() -> None:
    other = JointBatches(**{name: value for name, value in vars(BATCHES).items() if not name.startswith("_")})
    for step in (130, 3, 44, 82, 3):
        assert BATCHES.at(step) == other.at(step)


def test_pairs_clips_and_focus_begin_when_they_are_told_to() -> None:
    kinds: dict[int, Counter[int]] = {}
    for step in range(120):
        batch = BATCHES.at(step)
        assert len({len(sample.pictures) for sample, _ in batch}) == 1
        kinds.setdefault(step // 40, Counter())[len(batch[0][0].pictures)] += 1
    assert set(kinds[0]) == {1}
    assert kinds[1] == Counter({1: 34, 2: 4, 4: 2})
    signs = [step for step in range(120) if all(isinstance(sample.picture, Sign) for sample, _ in BATCHES.at(step))]
    charts = [step for step in range(120) if all(isinstance(sample.picture, Chart) for sample, _ in BATCHES.at(step))]
    assert set(range(82, 120, 5)) <= set(signs)
    assert set(range(86, 120, 10)) <= set(charts)
    for step in charts:
        if step >= 80:
            assert {question.task for _, extra in BATCHES.at(step) for question in extra} == {"tally"}


def test_no_picture_is_seen_twice_within_its_kind() -> None:
    seen = Counter(sample.picture for step in range(32) for sample, _ in BATCHES.at(step))
    assert max(seen.values()) == 1


def test_most_pictures_of_the_vision_phase_are_crowded() -> None:
    samples = [sample for step in range(10) for sample in vision_batch(3, step, 16)]
    crowded = sum(len(getattr(sample.picture, "objects", ())) > 5 for sample in samples)
    assert 0.5 < crowded / len(samples) < 0.9
