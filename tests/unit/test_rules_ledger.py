"""The budget holds at every instant, whatever guests do between two commands."""

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace

from qmpalloc.rules.ledger import GRANT_CHUNK_BYTES, Account, committed_bytes, next_orders
from qmpalloc.units import MIB, Grid


def account(name, target, charge, desired, commandable=True, actual=None):
    return Account(
        name=name,
        target_bytes=target * MIB,
        charge_bytes=charge * MIB,
        actual_bytes=(charge if actual is None else actual) * MIB,
        desired_bytes=desired * MIB,
        commandable=commandable,
    )


def orders(accounts, budget):
    return [(o.name, o.target_bytes // MIB, o.purpose) for o in next_orders(accounts, budget * MIB)]


def test_the_donor_shrinks_first_and_the_receiver_waits():
    assert orders([account("a", 500, 500, 400), account("b", 500, 500, 600)], 1000) == [("a", 400, "shrink")]


def test_the_receiver_is_granted_what_came_back():
    assert orders([account("a", 400, 440, 400), account("b", 500, 500, 600)], 1000) == [("b", 560, "grant")]
    assert orders([account("a", 400, 400, 400), account("b", 560, 560, 600)], 1000) == [("b", 600, "grant")]


def test_a_guest_that_is_moved_in_blocks_is_granted_whole_ones():
    blocks = replace(account("b", 500, 500, 650), grid=Grid(200 * MIB, 50 * MIB))
    assert orders([account("a", 400, 420, 400), blocks], 1000) == [("b", 550, "grant")]
    assert orders([account("a", 400, 460, 400), blocks], 1000) == []  # less than a block has come back


def test_memory_outside_of_a_balloon_is_no_room():
    accounts = [replace(account("a", 400, 400, 400), outside_bytes=100 * MIB), account("b", 400, 400, 600)]
    assert committed_bytes(accounts) == 900 * MIB
    assert orders(accounts, 1000) == [("b", 500, "grant")]
    assert orders([replace(accounts[0], desired_bytes=500 * MIB), account("b", 400, 400, 400)], 900) == []


def test_a_grant_too_small_to_matter_waits_unless_it_completes_the_wish():
    chunk = GRANT_CHUNK_BYTES // MIB
    assert orders([account("a", 400, 500 - chunk + 1, 400), account("b", 500, 500, 600)], 1000) == []
    assert orders([account("a", 400, 497, 400), account("b", 500, 500, 503)], 1000) == [("b", 503, "grant")]


def test_taking_a_shrink_back_needs_no_room():
    assert orders([account("a", 400, 480, 500), account("b", 520, 520, 520)], 1000) == [("a", 480, "grant")]


def test_nothing_is_granted_while_the_budget_is_exceeded():
    assert orders([account("a", 500, 600, 500), account("b", 500, 500, 600)], 1000) == []


def test_beyond_the_budget_a_charge_in_doubt_is_no_room():
    shrunk = account("a", 480, 520, 500, actual=480)
    assert orders([shrunk, account("b", 500, 500, 500)], 1000) == []
    assert orders([shrunk, account("b", 480, 480, 480)], 1000) == [("a", 500, "grant")]


def test_beyond_the_budget_a_shrink_that_has_not_happened_yet_can_be_taken_back():
    assert orders([account("a", 400, 520, 500), account("b", 500, 500, 500)], 1000) == [("a", 500, "grant")]


def test_a_guest_that_cannot_be_commanded_still_counts():
    hung = account("a", 500, 500, 100, commandable=False)
    assert orders([hung, account("b", 400, 400, 700)], 1000) == [("b", 500, "grant")]


accounts_strategy = st.lists(
    st.builds(
        lambda target, extra, desired, able: account("x", target, target + extra, desired, able),
        st.integers(0, 4000), st.integers(0, 500), st.integers(0, 4000), st.booleans(),
    ),
    max_size=6,
)  # fmt: skip


@given(accounts_strategy, st.integers(0, 20_000))
def test_commands_never_raise_what_is_committed_above_the_budget(accounts, budget):
    named = [
        Account(**{f: getattr(a, f) for f in a.__struct_fields__} | {"name": str(i)}) for i, a in enumerate(accounts)
    ]
    before = committed_bytes(named)
    after = {a.name: a.charge_bytes for a in named}
    for order in next_orders(named, budget * MIB):
        after[order.name] = max(after[order.name], order.target_bytes)
    assert sum(after.values()) <= max(before, budget * MIB)


class Host(RuleBasedStateMachine):
    """Guests that move between their size and their target as they like, reboot, and need; and a ledger that commands.

    A guest that boots may use all of its RAM without having been asked, while QEMU tells the size from before.
    """

    budget = 3000
    ram = 1400

    def __init__(self):
        super().__init__()
        self.targets = [1000, 1000, 1000]
        self.actuals = [1000, 1000, 1000]
        self.desired = [1000, 1000, 1000]
        self.booting = [False, False, False]
        self.in_need = [False, False, False]

    def account(self, index):
        charge = max(self.targets[index], self.actuals[index])
        reserve = max(self.ram - charge, 0) if self.booting[index] else 0
        plain = account(str(index), self.targets[index], charge, self.desired[index])
        return replace(plain, reserve_bytes=reserve * MIB, in_need=self.in_need[index])

    @property
    def accounts(self):
        return [self.account(index) for index in range(3)]

    @property
    def committed(self):
        return committed_bytes(self.accounts) // MIB

    @rule(shares=st.tuples(*[st.integers(1, 100)] * 3))
    def decide(self, shares):
        self.desired = [100 + (self.budget - 300) * share // sum(shares) for share in shares]

    @rule()
    def command(self):
        before = self.committed
        for order in next_orders(self.accounts, self.budget * MIB):
            index, charge = int(order.name), self.account(int(order.name))
            self.targets[index] = order.target_bytes // MIB
            if before > self.budget:  # nobody is granted what others have no room for
                assert order.target_bytes <= charge.charge_bytes + charge.reserve_bytes
        assert self.committed <= max(before, self.budget)

    @rule(index=st.integers(0, 2), share=st.floats(0, 1))
    def guest_moves(self, index, share):
        self.actuals[index] += round((self.targets[index] - self.actuals[index]) * share)

    @rule(index=st.integers(0, 2))
    def guest_boots(self, index):
        self.booting[index] = True

    @rule(index=st.integers(0, 2))
    def guest_has_booted(self, index):
        self.booting[index] = False

    @rule(index=st.integers(0, 2))
    def guest_is_in_need(self, index):
        self.in_need[index] = not self.in_need[index]

    @precondition(lambda self: self.targets == self.actuals and not any(self.booting))
    @rule()
    def when_all_is_still_the_wish_comes_true(self):
        for _ in range(4):
            self.command()
            self.actuals = list(self.targets)
        assert self.targets == self.desired

    @precondition(lambda self: self.targets == self.actuals)
    @rule()
    def those_in_need_are_served_first(self):
        orders = [order for order in next_orders(self.accounts, self.budget * MIB) if order.purpose == "grant"]
        rank = [not self.in_need[int(order.name)] for order in orders]
        assert rank == sorted(rank)

    @invariant()
    def budget_holds(self):
        assert sum(map(max, self.targets, self.actuals)) <= self.budget


TestHost = Host.TestCase
TestHost.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
