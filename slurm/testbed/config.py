"""The text of slurm.conf and slurmdbd.conf."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from slurm.testbed.layout import Layout
from slurm.testbed.shape import Shape

LOW, HIGH = "low", "high"  # partitions
# Grid Engine's code for the same. Not 75, with which `unclip train` asks to be run again: clusters
# do not know it, so here too it is the job's own script that must act on it.
REQUEUE_EXIT = 99


@dataclass(frozen=True)
class Machine:
    """Whose daemons run where: the machine's short name and the user's."""

    host: str
    user: str


def slurm_conf(layout: Layout, shape: Shape, ports: Mapping[str, int], machine: Machine) -> str:
    """slurm.conf; `ports` has one for slurmctld, slurmdbd and each node.

    All nodes are this machine, so nothing may look at it: no cgroups (a container may have none),
    no affinity, and each node's size is what is written here (`config_overrides`).
    """
    nodes = "".join(
        f"NodeName={name} NodeHostname={machine.host} NodeAddr=127.0.0.1 Port={ports[name]} "
        f"CPUs={shape.cpus} RealMemory={shape.memory} State=UNKNOWN\n"
        for name in shape.names
    )
    return f"""\
# Written by `python -m slurm.testbed up`, anew each time.
ClusterName={layout.cluster}
SlurmctldHost={machine.host}(127.0.0.1)
SlurmctldPort={ports["slurmctld"]}
SlurmUser={machine.user}
SlurmdUser={machine.user}
AuthType=auth/munge
# cred_expire is also how long a requeued job waits before it may start again.
AuthInfo=socket={layout.munge_socket},cred_expire={shape.requeue_delay}

StateSaveLocation={layout.state}
SlurmdSpoolDir={layout.spool}/%n
SlurmctldPidFile={layout.run}/slurmctld.pid
SlurmdPidFile={layout.run}/%n.pid
SlurmctldLogFile={layout.logs}/slurmctld.log
SlurmdLogFile={layout.logs}/%n.log
SlurmctldSyslogDebug=quiet
SlurmdSyslogDebug=quiet
MailProg=/bin/true

ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/linux
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout={shape.node_timeout}
KillWait=5

SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU={shape.memory // shape.cpus}
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2
EnforcePartLimits=ALL
JobRequeue=1
RequeueExit={REQUEUE_EXIT}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal

AccountingStorageEnforce=limits,qos
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={ports["slurmdbd"]}
AccountingStoragePass={layout.munge_socket}

{nodes}
PartitionName={LOW} Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={shape.grace}
PartitionName={HIGH} Nodes=ALL PriorityTier=2 PreemptMode=OFF
"""


def slurmdbd_conf(layout: Layout, ports: Mapping[str, int], machine: Machine) -> str:
    """slurmdbd.conf; the database knows the user by the socket (MYSQL_UNIX_PORT names it)."""
    return f"""\
# Written by `python -m slurm.testbed up`, anew each time.
AuthType=auth/munge
AuthInfo=socket={layout.munge_socket}
DbdHost={machine.host}
DbdAddr=127.0.0.1
DbdPort={ports["slurmdbd"]}
SlurmUser={machine.user}
PidFile={layout.run}/slurmdbd.pid
LogFile={layout.logs}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser={machine.user}
StorageLoc=slurm
"""
