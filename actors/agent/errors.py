"""What can be wrong with a run, or with what a person says to one.

AgentError                   agent
├── NoSuchRun                agent.none                no run of that id
├── RunOver                  agent.over                the run has ended
├── NoSuchPlanner            agent.no_planner          no planner of that name is installed
├── RunInvalid               agent.invalid             what was asked cannot be run
├── NoSuchApproval           agent.no_approval         no approval of that id was ever asked
├── ApprovalAnswered         agent.approval_answered   somebody else answered it, or it was answered otherwise
├── ApprovalExpired          agent.approval_expired    nobody answered it in time: it counts as denied
└── NoRoomInRun              agent.too_large           an event that fits into no message
"""

from __future__ import annotations

from ...runtime.errors import CallboardError


class AgentError(CallboardError):
    code = "agent"


class NoSuchRun(AgentError):
    code = "agent.none"
    default_hint = "`callboard runs` lists them"


class RunOver(AgentError):
    code = "agent.over"
    default_hint = "`callboard replay ID` goes on from any place of it, as a new run"


class NoSuchPlanner(AgentError):
    code = "agent.no_planner"


class RunInvalid(AgentError):
    code = "agent.invalid"


class NoSuchApproval(AgentError):
    code = "agent.no_approval"
    default_hint = "`callboard approvals` lists what waits"


class ApprovalAnswered(AgentError):
    code = "agent.approval_answered"


class ApprovalExpired(AgentError):
    code = "agent.approval_expired"


class NoRoomInRun(AgentError):
    code = "agent.too_large"
