# shellcheck shell=bash
# shellcheck disable=SC2034,SC2153  # names that the other files set or use
# The servers as local processes. What a server needs is in its own file:
# NAME_install, NAME_start, NAME_ready (quick), NAME_booted (thorough, after a
# start), NAME_stop, NAME_version, NAME_PORTS, NAME_LOGS, NAME_BOOT_SECONDS.

. "$ROOT/scripts/lib/common.sh"
. "$ROOT/scripts/lib/kafka.sh"
. "$ROOT/scripts/lib/rabbitmq.sh"
. "$ROOT/scripts/lib/postgres.sh"
. "$ROOT/scripts/lib/mariadb.sh"
. "$ROOT/scripts/lib/registry.sh"

local_up() { # SERVER...
    each up_one "$@"
}

# What the other steps take for granted on any machine, but a minimal one lacks.
local_tools() {
    command -v openssl >/dev/null || apt_install openssl
    command -v pgrep >/dev/null || apt_install procps
}

up_one() { # SERVER
    # Another release of RabbitMQ makes room for the one that is asked for.
    if [[ $1 == rabbitmq && $RABBITMQ_RELEASE != "$(rabbitmq_last)" ]]; then
        rabbitmq_install
        stop_one rabbitmq
    fi
    if gone "$1" || paused "$1" || ! "${1}_ready"; then
        start_one "$1"
    fi
}

local_start() { each start_one "$1"; }

start_one() { # SERVER
    local upper=${1^^} end seen
    local -n ports=${upper}_PORTS logs=${upper}_LOGS seconds=${upper}_BOOT_SECONDS
    if gone "$1"; then
        "${1}_install"
        kill_one "$1"
        ports_free "${ports[@]}"
        say "starting $1 $("${1}_version")"
        "${1}_start"
    else
        signal CONT "$1"
    fi
    # On a busy machine a starting process may be out of sight for a while.
    seen=$SECONDS
    end=$((SECONDS + seconds))
    until "${1}_booted"; do
        gone "$1" || seen=$SECONDS
        if ((SECONDS >= end || SECONDS > seen + 3)); then
            tail -n 40 "${logs[@]}" >&2 || true
            die "$1 is not ready; its logs: ${logs[*]} (then: $0 down $1; $0 up $1)"
        fi
        sleep 0.2
    done
}

local_down() { each stop_one "$@"; }
local_stop() { each stop_one "$1"; }

stop_one() { # SERVER
    local all
    mapfile -t all < <(pids "$1")
    if ! gone "$1"; then
        signal CONT "$1"
        "${1}_stop"
    fi
    kill_one "$1"
    wait_for 10 ended "${all[@]}" || die "$1 does not end"
}

local_kill() { each kill_one "$1"; }

kill_one() { # SERVER
    local all
    mapfile -t all < <(pids "$1")
    if ! wait_for 10 killed "$1" || ! wait_for 10 ended "${all[@]}"; then
        die "$1 cannot be killed"
    fi
}

killed() {
    signal KILL "$1"
    gone "$1"
}

local_pause() {
    ! gone "$1" || die "$1 is down"
    signal STOP "$1"
}

local_resume() {
    ! gone "$1" || die "$1 is down"
    signal CONT "$1"
}

local_state() { # SERVER
    if gone "$1"; then
        echo down
    elif paused "$1"; then
        echo paused
    elif "${1}_ready"; then
        echo up
    else
        echo unready
    fi
}

local_version() { "${1}_version"; }

local_ctl() {
    ! gone rabbitmq || die "rabbitmq is down"
    rabbitmq_ctl rabbitmqctl "$@"
}

# each COMMAND SERVER...: for all servers at the same time, and for one server
# only one of the commands that change it.
each() {
    local command=$1 server job jobs=() failed=0
    shift
    for server in "$@"; do
        (
            exec 9>"$STATE/$server.lock"
            flock -w 900 9 || die "$server: another call of $0 does not end"
            "$command" "$server"
        ) &
        jobs+=($!)
    done
    trap 'kill "${jobs[@]}" 2>/dev/null; exit 130' INT TERM
    for job in "${jobs[@]}"; do
        wait "$job" || failed=1
    done
    trap - INT TERM
    return $failed
}
