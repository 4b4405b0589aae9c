"""Any order of submissions, beats, failures, cancels, lost clusters and hours: what must hold holds after each."""

from collections import Counter

import hypothesis
from control_plane import Clock, Cluster, Driver, a_plane, a_user
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import select

from booth.contract.states import FailureReason, JobState
from booth_service.control.database import Database
from booth_service.control.policy import RayStatus
from booth_service.control.reconciler import Reconciler
from booth_service.control.records import Attempt, AttemptState, Job, JobEvent, Model

RUNNING = ["preparing", "training", "publishing"]


class Life(RuleBasedStateMachine):
    """Jobs of one tenant on a cluster that may do anything. `path` and `store` are set by the test."""

    path = store = None
    count = 0

    def __init__(self) -> None:
        super().__init__()
        Life.count += 1
        self.database = Database(f"sqlite:///{Life.path}/{Life.count}.db")
        self.database.migrate()
        self.clock, self.cluster = Clock(), Cluster()
        self.plane = a_plane(self.database, Life.store, self.cluster, self.clock)
        self.context = a_user(self.plane)
        self.user = self.context.__enter__()
        self.reconciler = Reconciler(self.plane)
        self.final: dict[str, tuple[str, str | None]] = {}

    def teardown(self) -> None:
        self.context.__exit__(None, None, None)
        self.database.close()

    def attempts(self) -> list[Attempt]:
        with self.database.read() as session:
            return list(session.scalars(select(Attempt).order_by(Attempt.created_at, Attempt.job_id, Attempt.n)))

    def a_driver(self, which: int) -> Driver | None:
        """The driver of any attempt, the dead and overtaken ones included."""
        rows = self.attempts()
        if not rows:
            return None
        row = rows[which % len(rows)]
        return Driver(self.plane, self.user.http, row.job_id, row.n, row.fence)

    @rule()
    def submit(self) -> None:
        answer = self.user.submit(self.plane, key=str(self.clock.moment) + str(len(self.jobs())))
        assert answer.status_code == 202

    @rule()
    def reconcile(self) -> None:
        self.reconciler.round()

    @rule(seconds=st.sampled_from([1, 10, 100, 400]))
    def time_passes(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule(which=st.integers(0, 9), state=st.sampled_from(RUNNING), step=st.integers(0, 10))
    def beat(self, which: int, state: str, step: int) -> None:
        if driver := self.a_driver(which):
            assert driver.beat(state, step).status_code in (200, 409)

    @rule(which=st.integers(0, 9), reason=st.sampled_from(list(FailureReason)))
    def fail(self, which: int, reason: FailureReason) -> None:
        if driver := self.a_driver(which):
            assert driver.failed(reason.value).status_code in (200, 409)

    @rule(which=st.integers(0, 9))
    def publish(self, which: int) -> None:
        if driver := self.a_driver(which):
            assert driver.publish().status_code in (200, 409)

    @rule(which=st.integers(0, 9))
    def cancel(self, which: int) -> None:
        if jobs := self.jobs():
            job = jobs[which % len(jobs)]
            assert self.user.http.post(f"/v1/jobs/{job.id}/cancel").status_code in (202, 409)

    @rule(which=st.integers(0, 9), status=st.sampled_from([RayStatus.FAILED, RayStatus.SUCCEEDED, RayStatus.STOPPED]))
    def ray_job_ends(self, which: int, status: RayStatus) -> None:
        if names := list(self.cluster.jobs):
            self.cluster.jobs[names[which % len(names)]] = status

    @rule()
    def cluster_is_lost(self) -> None:
        self.cluster.jobs.clear()

    @rule(away=st.booleans())
    def cluster_goes_and_comes(self, away: bool) -> None:
        self.cluster.is_away = away

    def jobs(self) -> list[Job]:
        with self.database.read() as session:
            return list(session.scalars(select(Job).order_by(Job.id)))

    @invariant()
    def a_final_state_is_never_left(self) -> None:
        for job in self.jobs():
            if job.id in self.final:
                assert self.final[job.id] == (job.state, job.model_id)
            elif job.state.is_final:
                self.final[job.id] = (job.state, job.model_id)

    @invariant()
    def a_model_exists_exactly_where_its_job_succeeded(self) -> None:
        with self.database.read() as session:
            models = {model.job_id: model.id for model in session.scalars(select(Model))}
        assert models == {job.id: job.model_id for job in self.jobs() if job.state is JobState.SUCCEEDED}

    @invariant()
    def one_driver_of_a_job_at_most_has_a_say(self) -> None:
        open_attempts = [row for row in self.attempts() if row.state is not AttemptState.CLOSED]
        assert len(open_attempts) <= self.plane.settings.max_running_jobs
        jobs = {job.id: job for job in self.jobs()}
        for row in open_attempts:
            assert (row.n, row.fence) == (jobs[row.job_id].attempt, jobs[row.job_id].fence)
        limits = self.plane.settings
        assert all(row.n <= limits.max_attempts + limits.max_cluster_losses for row in self.attempts())
        failures = Counter(
            row.job_id for row in self.attempts() if row.reason not in (None, FailureReason.CLUSTER_LOST)
        )
        assert all(count <= limits.max_attempts for count in failures.values())

    @invariant()
    def the_history_has_no_gap_and_ends_where_the_job_is(self) -> None:
        with self.database.read() as session:
            for job in session.scalars(select(Job)):
                events = session.scalars(select(JobEvent).where(JobEvent.job_id == job.id).order_by(JobEvent.seq)).all()
                assert [event.seq for event in events] == list(range(1, job.last_event + 1))
                assert events[-1].status == job.state


def test_what_must_hold_holds_after_any_steps(tmp_path, object_store):
    Life.path, Life.store = tmp_path, object_store
    limits = hypothesis.settings(max_examples=10, stateful_step_count=30, deadline=None, database=None)
    run_state_machine_as_test(Life, settings=limits)
