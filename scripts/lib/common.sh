# shellcheck shell=bash
# shellcheck disable=SC2034,SC2153  # names that the other files set or use
# What the local servers share: where things lie, packages, locks, starting a
# process that outlives the caller, finding it again, waiting for it.
# Sourced by scripts/brokers and scripts/peers, which set ROOT (this repository) and STATE (the
# state directory).

say() { printf '%s\n' "brokers: $*" >&2; }

die() {
    say "$*"
    exit 1
}

# --- the state directory -----------------------------------------------------

# A directory that these scripts made has this file. Nothing is deleted in any other.
MARKER=.cqrs-state

# claim_state VARIABLE DEFAULT: makes and marks the state directory. One that is not empty and has no
# marker holds somebody's files, and is refused: VARIABLE may name the home directory by mistake.
# (The default one is ours without a marker: earlier versions wrote none.)
claim_state() {
    local real guarded
    case $STATE in
        *[[:cntrl:]:\#\&\\\"\'\`\$\*\?\[\]\;\|\<\>]*)
            die "$1 is $(printf %q "$STATE"): its characters must be plain ones (no : # & quotes and the like)"
            ;;
    esac
    real=$(readlink -m -- "$STATE")
    for guarded in "$HOME" "$ROOT"; do
        guarded=$(readlink -m -- "$guarded")
        [[ $guarded/ != "${real%/}"/* ]] ||
            die "$1 is $STATE, which is or contains $guarded: name a directory of its own"
    done
    if [[ -e $real && ! -d $real ]]; then die "$1 is $STATE, which is no directory"; fi
    if [[ ! -e $real/$MARKER && $STATE != "$2" && -n $(ls -A -- "$real" 2>/dev/null) ]]; then
        die "$1 is $STATE, which is not empty and was not made by this script: name another directory"
    fi
    if ! mkdir -p -- "$STATE" || ! : >>"$STATE/$MARKER"; then
        die "cannot write to $STATE ($1)"
    fi
}

# remove PATH...: deletes what these scripts made below the state directory, and nothing that is
# mounted there. Files of a chroot are root's.
remove() {
    local path
    for path in "$@"; do
        [[ -e $STATE/$MARKER && $path == "$STATE"/?* && $path != */../* && $path != */.. ]] ||
            die "will not delete $path: this script did not make it"
        if [[ -d $path && ! -L $path && ! -O $path ]]; then
            as_root rm -rf --one-file-system -- "$path"
        else
            rm -rf --one-file-system -- "$path"
        fi
    done
}

# remove_state VARIABLE: deletes the state directory as a whole, if these scripts made it.
remove_state() {
    [[ -e $STATE ]] || return 0
    claim_state "$@"
    rm -rf --one-file-system -- "$STATE"
}

# Installing packages and entering a chroot take the superuser.
SUDO=()
if ((EUID != 0)) && command -v sudo >/dev/null; then SUDO=(sudo); fi
as_root() { "${SUDO[@]}" "$@"; }

apt_install() {
    command -v apt-get >/dev/null ||
        die "please install $* (only Debian's apt-get is known here)"
    say "installing $*"
    local log="$STATE/apt.log" cache=${XDG_CACHE_HOME:-$HOME/.cache}
    # Two servers, or scripts/peers, may want packages at the same time.
    mkdir -p "$cache"
    exec 8>"$cache/cqrs-apt.lock"
    flock -w 600 8 || die "another installation does not end, see $log"
    {
        as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q &&
            as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends \
                -o APT::Get::AllowUnauthenticated=false -o DPkg::Lock::Timeout=300 -o Dpkg::Options::=--force-confold "$@"
    } >"$log" 2>&1 </dev/null 8>&- || {
        tail -n 20 "$log" >&2
        die "could not install $*"
    }
    exec 8>&-
}

# verified DIR LOCK: DIR has the files that LOCK lists, with those SHA-512 digests, and no other.
verified() {
    (cd "$1" && sha512sum --check --strict --quiet "$2") &&
        [[ $(LC_ALL=C ls -A "$1") == "$(sed -n '/^#/!s/^[^ ]*  //p' "$2" | LC_ALL=C sort)" ]]
}

# --- processes ---------------------------------------------------------------

# Every process of a server carries this variable, which is how it is found
# again: a pid file could lie, and would not know the server's children.
mark() { printf 'CQRS_BROKERS_SERVER=%s:%s' "$1" "$STATE"; }

# daemon SERVER LOG COMMAND...: starts COMMAND in a session of its own, with
# nothing of the caller's: no pipe it would keep open, no lock, no environment.
daemon() {
    local server=$1 log=$2 fd
    shift 2
    if [[ -n $(find "$log" -size +20M 2>/dev/null) ]]; then mv "$log" "$log.1"; fi
    (
        cd /
        exec </dev/null >>"$log" 2>&1
        for fd in /proc/"$BASHPID"/fd/*; do
            fd=${fd##*/}
            ((fd > 2)) && eval "exec $fd>&-"
        done
        exec env -i PATH="$PATH" HOME="$HOME" LANG=C.UTF-8 "$(mark "$server")" \
            setsid --fork "$@"
    )
}

# pids SERVER: all processes of the server (workers of PostgreSQL have
# overwritten their environment and are found as children), without those of a
# container on this machine that uses the same path for its state.
pids() {
    local pid found=() elevate=()
    [[ $1 != rabbitmq ]] || elevate=("${SUDO[@]}")
    for pid in $("${elevate[@]}" grep -lszxF -- "$(mark "$1")" /proc/[0-9]*/environ); do
        pid=${pid//[!0-9]/}
        if [[ ! -e /proc/$pid/ns/pid || /proc/$pid/ns/pid -ef /proc/self/ns/pid ]]; then
            found+=("$pid")
        fi
    done
    ((${#found[@]} > 0)) || return 0
    {
        printf '%s\n' "${found[@]}"
        pgrep -P "$(IFS=,; echo "${found[*]}")" || true
    } | sort -un
}

signal() { # SIGNAL SERVER: to every process of the server
    local all elevate=()
    [[ $2 != rabbitmq ]] || elevate=("${SUDO[@]}")
    mapfile -t all < <(pids "$2")
    ((${#all[@]} == 0)) || "${elevate[@]}" kill -s "$1" "${all[@]}" 2>/dev/null || true
}

paused() { # SERVER
    local pid state
    pid=$(pids "$1" | head -n 1)
    [[ -n $pid ]] && state=$(sed -E 's/.*\) (.).*/\1/' "/proc/$pid/stat" 2>/dev/null) && [[ $state == T ]]
}

# wait_for SECONDS COMMAND...: until COMMAND succeeds.
wait_for() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < end)) || return 1
        sleep 0.2
    done
}

# gone SERVER: nothing of it runs, or only epmd, which outlives a crashed RabbitMQ.
# A process has no environment for a moment while it turns into another program,
# so one look is not enough.
gone() {
    not_seen "$1" && sleep 0.1 && not_seen "$1"
}

not_seen() {
    local pid
    for pid in $(pids "$1"); do
        [[ $(cat "/proc/$pid/comm" 2>/dev/null) == epmd ]] || return 1
    done
}

# ended PID...: a process that is ending loses its environment first (and is gone
# by the function above) and its ports last. A zombie without threads holds none.
ended() {
    local pid tasks
    for pid in "$@"; do
        tasks=("/proc/$pid/task"/*)
        if ((${#tasks[@]} > 1)) || grep -qsE '\) [^ZX] ' "/proc/$pid/stat"; then
            return 1
        fi
    done
}

# --- probes ------------------------------------------------------------------

# ask PORT MAX HEX: sends bytes to a local port, prints up to MAX bytes of the
# answer in hex. Plain bash: no client has to be started to see a server live.
ask() {
    # shellcheck disable=SC2016  # expanded by the inner bash
    timeout 2 bash -c '
        exec 3<>"/dev/tcp/127.0.0.1/$1" || exit 1
        printf "%b" "$(sed -E "s/(..)/\\\\x\1/g" <<<"$3")" >&3
        dd bs="$2" count=1 <&3 2>/dev/null | od -An -v -tx1 | tr -d " \n"
    ' ask "$1" "$2" "$3" 2>/dev/null
}

# listens PORT...: all of them have a listener, on loopback or on any address.
# Read from the system's table, as a connection would leave traces in the logs.
listens() {
    local port address='(0100007F|00000000|0{32}|0{24}01000000|0{16}FFFF00000100007F)'
    for port in "$@"; do
        printf -v port %04X "$port"
        grep -qsE ": $address:$port [0-9A-F]+:0000 0A" /proc/net/tcp /proc/net/tcp6 || return 1
    done
}

# ports_free PORT...: fails if another program has one of them. (A process that
# was just killed may hold its ports a moment longer.)
ports_free() {
    local port
    for port in "$@"; do
        wait_for 3 not_listens "$port" ||
            die "port $port is taken by a program that this script did not start" \
                "(with another CQRS_BROKERS_HOME? a system service? a container?)"
    done
}

not_listens() { ! listens "$1"; }
