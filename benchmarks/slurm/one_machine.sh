#!/bin/sh
# A SLURM of its own on this machine: one controller and two nodes of two CPUs each, in a folder, beside any other.
#
#   apt-get install slurm-wlm munge
#   sh benchmarks/slurm/one_machine.sh start FOLDER     then: export SLURM_CONF=FOLDER/slurm.conf
#   sh benchmarks/slurm/one_machine.sh stop FOLDER
#
# As root, since jobs run as whoever submits them. It uses neither cgroups nor systemd, so that it works in containers.
set -eu
PATH=$PATH:/usr/sbin:/sbin
usage="usage: one_machine.sh start|stop FOLDER"
action=${1:?$usage}
folder=${2:?$usage}
port=${SLURM_PORT:-16817}

stop() {
    for name in node1 node2 slurmctld munged; do
        if [ -f "$folder/$name.pid" ]; then
            process=$(cat "$folder/$name.pid")
            kill "$process" 2>/dev/null || true
            while kill -0 "$process" 2>/dev/null; do sleep 0.2; done
            rm -f "$folder/$name.pid"
        fi
    done
}

start() {
    mkdir -p "$folder/state" "$folder/node1" "$folder/node2"
    folder=$(cd "$folder" && pwd)
    chmod 755 "$folder"
    cat >"$folder/slurm.conf" <<END
ClusterName=one
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmUser=root
SlurmctldPort=$port
SlurmctldPidFile=$folder/slurmctld.pid
SlurmctldLogFile=$folder/slurmctld.log
StateSaveLocation=$folder/state
SlurmdPidFile=$folder/%n.pid
SlurmdLogFile=$folder/%n.log
SlurmdSpoolDir=$folder/%n
SlurmdParameters=config_overrides
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
KillWait=5
NodeName=node1 NodeHostname=$(hostname) NodeAddr=127.0.0.1 Port=$((port + 1)) CPUs=2 RealMemory=4000
NodeName=node2 NodeHostname=$(hostname) NodeAddr=127.0.0.1 Port=$((port + 2)) CPUs=2 RealMemory=4000
PartitionName=main Nodes=node1,node2 Default=YES MaxTime=INFINITE State=UP
END
    [ -f "$folder/munge.key" ] || (umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
    munged --force --socket "$folder/munge.socket" --key-file "$folder/munge.key" --pid-file "$folder/munged.pid" \
        --log-file "$folder/munged.log" --seed-file "$folder/munged.seed" --num-threads 1
    slurmctld -f "$folder/slurm.conf"
    slurmd -f "$folder/slurm.conf" -N node1
    slurmd -f "$folder/slurm.conf" -N node2
    for attempt in $(seq 60); do
        idle=$(SLURM_CONF=$folder/slurm.conf sinfo --noheader --Node --states=idle 2>/dev/null | wc -l)
        if [ "$idle" -eq 2 ]; then
            echo "ready: export SLURM_CONF=$folder/slurm.conf"
            return
        fi
        sleep 1
    done
    echo "no two idle nodes after 60 s; see the logs in $folder" >&2
    exit 1
}

case $action in
start) start ;;
stop) stop ;;
*) echo "$usage" >&2 && exit 2 ;;
esac
