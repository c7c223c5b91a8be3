"""The explorer of interleavings finds what it should, and no more than it needs."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st
from interleavings import Run, Step, explore


class Program(Run):
    """Parties that each do a list of steps, as ``("x", 1)``: add 1 to x in two steps, or ``("x", None)``: read it."""

    def __init__(self, parties):
        super().__init__()
        self.program = parties
        self.values = {}
        self.seen = {}

    def begin(self):
        for number, steps in enumerate(self.program):
            self.start(str(number), lambda number=number, steps=steps: self.perform(number, steps))

    def version(self, object):
        return self.values.get(object)

    def perform(self, number, steps):
        for name, write in steps:
            self.pause(Step("read", name, writes=False))
            found = self.values.get(name, 0)
            self.seen[number] = (*self.seen.get(number, ()), found)
            if write:
                self.pause(Step("write", name))
                self.values[name] = found + write


def outcomes(parties):
    runs = explore(lambda: Program(parties))
    return [(tuple(sorted(run.values.items())), tuple(sorted(run.seen.items()))) for run in runs]


def brute_force(parties):
    """All interleavings of the same, one by one."""
    found = set()
    turns = [number for number, steps in enumerate(parties) for _, write in steps for _ in range(2 if write else 1)]
    for order in set(itertools.permutations(turns)):
        program = Program(parties)
        program.begin()
        for number in order:
            program.do(str(number))
        found.add((tuple(sorted(program.values.items())), tuple(sorted(program.seen.items()))))
    return found


def test_lost_update_is_found():
    """Two parties that read and then write the same object: the run in which one update is lost is among them."""
    found = {dict(values)["x"] for values, _ in outcomes([[("x", 1)], [("x", 1)]])}
    assert found == {1, 2}


def test_all_outcomes_are_found():
    """Whatever an interleaving can lead to, one of the runs does."""
    for parties in (
        [[("x", 1)], [("x", 2)], [("x", 4)]],
        [[("x", 1), ("y", None)], [("y", 1), ("x", None)]],
        [[("x", 1), ("y", None)], [("y", 1), ("z", None)], [("z", 1), ("x", None)]],
        [[("x", None), ("y", None)], [("x", 1), ("y", 1)]],
        [[("x", 1)], [("x", None)], [("x", None), ("x", None)]],
    ):
        assert set(outcomes(parties)) == brute_force(parties)


def test_independent_steps_are_run_in_one_order():
    """Three parties with an object each: one run, not ninety."""
    assert len(outcomes([[("x", 1)], [("y", 1)], [("z", 1)]])) == 1


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from("xyz"), st.sampled_from([None, 1, 2])), min_size=1, max_size=2),
        min_size=2,
        max_size=3,
    ).filter(lambda parties: sum(2 if write else 1 for steps in parties for _, write in steps) <= 7)
)
def test_outcomes_of_any_program_are_found(parties):
    """Programs made up by the dozen: the runs end as all interleavings do, no more and no less."""
    assert set(outcomes(parties)) == brute_force(parties)
