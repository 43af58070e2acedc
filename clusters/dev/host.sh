# What process 1 of a host does, in namespaces of its own.
# Arguments: its name and address, the address of the machine, the cluster's folder, and what is shared of /tmp.
set -e
host=$1 address=$2 machine=$3 folder=$4; shift 4
echo $host > /proc/sys/kernel/hostname
cd /tmp  # keeps the machine's own /tmp in reach
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t tmpfs -o mode=1777 shm /dev/shm
for path; do mkdir -p /tmp/$path; mount --no-canonicalize --rbind ./$path /tmp/$path; done
cd /
mount --bind $folder/hosts /etc/hosts
for attempt in $(seq 100); do ip link set eth0 up 2> /dev/null && break; sleep 0.1; done
ip link set lo up
ip address add $address/24 dev eth0
ip route add default via $machine
slurmd -D -N $host -f $folder/slurm.conf &
wait
