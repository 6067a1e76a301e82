import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scheduler.admission import Admission
from triptych.core.errors import Overloaded
from triptych.core.ids import TenantId


class AdmissionMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.admission = Admission(5, 3, retry_after_s=2.5)
        self.out = []
        self.returned = []

    @rule(tenant=st.sampled_from(["a", "b", "c"]))
    def take(self, tenant):
        has_room = len(self.out) < 5 and sum(t.tenant == tenant for t in self.out) < 3
        if has_room:
            self.out.append(self.admission.take(TenantId(tenant)))
            return
        with pytest.raises(Overloaded) as refusal:
            self.admission.take(TenantId(tenant))
        assert refusal.value.retry_after_s == 2.5

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def release(self, data):
        ticket = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        self.admission.release(ticket)
        self.returned.append(ticket)

    @precondition(lambda self: self.returned)
    @rule()
    def release_again(self):
        self.admission.release(self.returned[-1])

    @invariant()
    def agrees(self):
        self.admission.check()
        assert self.admission.num_taken == len(self.out)
        for tenant in ("a", "b", "c"):
            assert self.admission.num_of(TenantId(tenant)) == sum(
                ticket.tenant == tenant for ticket in self.out
            )


AdmissionMachine.TestCase.settings = settings(max_examples=40, deadline=None)
TestAdmission = AdmissionMachine.TestCase
