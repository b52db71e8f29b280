"""Why a job waits, or has ended: Slurm's reason codes in plain words, with what to do.

Source: "Job Reason Codes" of Slurm's documentation (job_reason_codes.html, 24.11), squeue(1).
"""

import re
from typing import Final

_REASONS: Final = {
    "AccountNotAllowed": "the account may not use this partition; choose another of the two",
    "AccountingPolicy": "a limit of the account is reached; `sacctmgr show assoc` lists them",
    "AssociationJobLimit": "the account allows no more jobs; wait",
    "AssociationResourceLimit": "the account allows no more of a resource; ask for less",
    "AssociationTimeLimit": "its time limit is longer than the account allows",
    "BadConstraints": "no node can ever satisfy the request; cancel, change it, submit again",
    "BeginTime": "its earliest start has not come, or it was put back into the queue just now",
    "Cleaning": "it goes back to the queue; its last run is still being cleared away",
    "Constraints": "no node satisfies its constraint at this time",
    "DeadLine": "it cannot end before its deadline; cancel it and submit it with a later one",
    "Dependency": "another job must end first",
    "DependencyNeverSatisfied": "the job it depends on has ended otherwise; cancel it",
    "FedJobLock": "the clusters of the federation have not agreed yet",
    "InactiveLimit": "it was idle for longer than the cluster allows",
    "InvalidAccount": "there is no such account; `sacctmgr show assoc` lists them",
    "InvalidQOS": "the QoS does not exist, or is not open to its account",
    "JobArrayTaskLimit": "as many tasks of its array run as were asked for",
    "JobHeldAdmin": "an administrator holds it; ask them",
    "JobHeldUser": "it is held; `scontrol release` lets it go",
    "JobHoldMaxRequeue": "it went back to the queue too often and is held",
    "JobLaunchFailure": "a node could not start it: its folder or log file is not there, say",
    "Licenses": "it waits for a licence",
    "MaxMemPerLimit": "it asks for more memory per CPU or node than is allowed",
    "NodeDown": "a node that it needs is down",
    "NonZeroExitCode": "its script ended with an error; see its logs",
    "None": "the scheduler has not looked at it yet",
    "OutOfMemory": "it needed more memory than it had asked for; see mem among slurm.args",
    "PartitionConfig": "it violates a limit of the partition; `scontrol show partition`",
    "PartitionDown": "the partition takes no jobs to its nodes now",
    "PartitionInactive": "the partition is inactive",
    "PartitionNodeLimit": "it asks for more nodes than the partition has or allows now",
    "PartitionTimeLimit": "its time limit is longer than the partition's; lower slurm.time",
    "Priority": "jobs of higher priority come first",
    "Prolog": "its nodes are being prepared",
    "QOSJobLimit": "as many jobs of its QoS run as are allowed",
    "QOSNotAllowed": "the account or the partition does not allow its QoS",
    "QOSResourceLimit": "its QoS uses as much as it may",
    "QOSTimeLimit": "its time limit is longer than its QoS allows; lower slurm.time",
    "QOSUsageThreshold": "its QoS has used too much",
    "ReqNodeNotAvail": "a node that it names, or needs, is down, drained, reserved or in use",
    "Reservation": "its reservation has not begun",
    "ReservationDeleted": "its reservation is gone; submit without it",
    "Resources": "it is next when enough nodes are free",
    "SchedDefer": "the cluster starts no job at once",
    "SystemFailure": "Slurm, a file system or the network failed",
    "TimeLimit": "it used up its time limit",
    "WaitingForScheduling": "the scheduler has not looked at it yet",
}
_LIMIT: Final = re.compile(
    r"(?P<whose>QOS|Assoc)?(?P<kind>Grp|Max)(?P<what>\w+?)"
    r"(?:Per(?P<per>Job|Node|User|Account))?(?:Limit)?"
)
_MINIMUM: Final = re.compile(r"QOSMin(\w+?)(?:NotSatisfied)?")
_CODE: Final = re.compile(r"[A-Za-z]+")


def explained(reason: str) -> str:
    """Slurm's reason with what it means, or as it stands where that is not known.

    >>> explained("Priority")
    'Priority: jobs of higher priority come first'
    """
    match = _CODE.match(reason)
    if match is None:
        return reason
    meaning = _REASONS.get(match[0]) or _limit_meaning(match[0])
    return reason if meaning is None else f"{reason}: {meaning}"


def _limit_meaning(code: str) -> str | None:
    """Of the families that name one limit for each kind of resource."""
    minimum = _MINIMUM.fullmatch(code)
    if minimum is not None:
        return f"the QoS is for jobs that ask for more {minimum[1]}"
    limit = _LIMIT.fullmatch(code)
    if limit is None:
        return None
    whose = "account" if limit["whose"] == "Assoc" else "QoS"
    per = f" per {limit['per'].lower()}" if limit["per"] else ""
    together = " for all its jobs together" if limit["kind"] == "Grp" else ""
    return f"the {whose} allows no more {limit['what']}{per}{together}; wait, or ask for less"
