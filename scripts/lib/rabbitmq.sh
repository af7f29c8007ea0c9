# shellcheck shell=bash
# shellcheck disable=SC2034,SC2153  # names that the other files set or use
# RabbitMQ as a local process: Debian's package in a chroot of its own, so that
# any release can be had on any host, and no system service is touched.

RABBITMQ_PORTS=(5671 5672 15672 25672)
RABBITMQ_HOME=$STATE/rabbitmq
RABBITMQ_LOGS=("$RABBITMQ_HOME/console.log")
RABBITMQ_BOOT_SECONDS=120

rabbitmq_suites() { # RELEASE: the Debian suites that have it, the best first
    case $1 in
        4 | 4.3) echo sid trixie ;;
        4.0) echo trixie ;;
        3.10) echo bookworm ;;
        *) die "Debian has no RabbitMQ $1; CQRS_RABBITMQ may be 4, 4.0 or 3.10" ;;
    esac
}

# Each release has a chroot with its programs and its data.
rabbitmq_root() { echo "$RABBITMQ_HOME/$RABBITMQ_RELEASE"; }
rabbitmq_version() { cat "$(rabbitmq_root)/cqrs/version" 2>/dev/null || echo "$RABBITMQ_RELEASE"; }

# rabbitmq_enter DIR USER COMMAND...: prints the command line that runs COMMAND
# in the chroot, one word per line. /proc and /dev are mounted in a name space
# of that process alone, where the system lets us, and so are never left behind.
rabbitmq_enter() {
    local root=$1 user=$2
    shift 2
    if as_root unshare --mount true 2>/dev/null; then
        # shellcheck disable=SC2016  # expanded by the inner sh
        printf '%s\n' "${SUDO[@]}" unshare --mount sh -c \
            '{ mount -t proc proc "$0/proc"; mount --rbind /dev "$0/dev"; } 2>/dev/null; exec chroot "$@"' "$root"
    else
        printf '%s\n' "${SUDO[@]}" chroot
    fi
    printf '%s\n' "--userspec=$user" "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        HOME=/cqrs LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"
}

# The keys that Debian's archive is signed with.
RABBITMQ_KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

rabbitmq_bootstrap() { # SUITE DIR
    local mirror inside apart=()
    # The mirror this machine uses, if it is a Debian one.
    # shellcheck disable=SC2016  # expanded by apt-get
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' \
        'Origin: Debian' 'Label: Debian' 2>/dev/null | head -n 1)
    remove "$2"
    # What it mounts in there goes with it. A signature that cannot be checked, or is wrong, ends it.
    ! as_root unshare --mount true 2>/dev/null || apart=(unshare --mount)
    as_root "${apart[@]}" env -u DEBOOTSTRAP_DIR debootstrap --variant=minbase --force-check-gpg \
        --keyring="$RABBITMQ_KEYRING" "$1" "$2" ${mirror:+"$mirror"} || return 1
    # How this machine reaches the mirror holds inside as well.
    apt-config dump | grep -E '^Acquire::(Check|http|https)' |
        as_root tee "$2/etc/apt/apt.conf.d/90host" || true
    echo '127.0.0.1 localhost' | as_root tee "$2/etc/hosts"
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$2/usr/sbin/policy-rc.d"
    as_root chmod +x "$2/usr/sbin/policy-rc.d"
    mapfile -t inside < <(rabbitmq_enter "$2" root:root)
    # shellcheck disable=SC2016  # expanded by dpkg-query
    "${inside[@]}" sh -ec '
        apt-get update -q
        apt-get install -qy --no-install-recommends rabbitmq-server
        apt-get clean
        rm -rf /var/lib/apt/lists
        mkdir -p /cqrs/data /certs
        dpkg-query -W -f "\${Version}\n" rabbitmq-server | sed "s/-.*//" >/cqrs/version
        chown -R rabbitmq:rabbitmq /cqrs'
}

rabbitmq_install() {
    local suite suites root log=$RABBITMQ_HOME/install.log
    root=$(rabbitmq_root)
    [[ ! -d $root ]] || return 0
    ((EUID == 0)) || command -v sudo >/dev/null ||
        die "a local RabbitMQ takes root or sudo (or start a Docker engine)"
    suites=$(rabbitmq_suites "$RABBITMQ_RELEASE")
    if ! command -v debootstrap >/dev/null || ! command -v gpgv >/dev/null || [[ ! -s $RABBITMQ_KEYRING ]]; then
        apt_install debootstrap gpgv debian-archive-keyring
    fi
    [[ -s $RABBITMQ_KEYRING ]] ||
        die "without $RABBITMQ_KEYRING (package debian-archive-keyring) Debian's signatures cannot be checked"
    mkdir -p "$RABBITMQ_HOME"
    for suite in $suites; do
        say "downloading RabbitMQ $RABBITMQ_RELEASE (Debian $suite)"
        if rabbitmq_bootstrap "$suite" "$root.new" >"$log" 2>&1 </dev/null; then
            as_root mv "$root.new" "$root"
            return
        fi
        tail -n 5 "$log" >&2
    done
    die "could not install RabbitMQ $RABBITMQ_RELEASE, see $log"
}

rabbitmq_configure() {
    local root group
    root=$(rabbitmq_root)
    {
        sed 's/0\.0\.0\.0/127.0.0.1/' "$ROOT/docker/rabbitmq.conf"
        # The other ways to see the memory in use read /proc, which may be missing.
        echo 'vm_memory_calculation_strategy = allocated'
    } | as_root tee "$root/cqrs/rabbitmq.conf" >/dev/null
    echo '[rabbitmq_management].' | as_root tee "$root/cqrs/enabled_plugins" >/dev/null
    # The server is a user of the chroot: its group may read the key, nobody else.
    group=$(sed -n 's/^rabbitmq:[^:]*:\([0-9]*\):.*/\1/p' "$root/etc/group")
    as_root install -m 644 "$CERTS"/ca.pem "$CERTS"/server.pem "$root/certs"
    as_root install -m 640 -g "${group:?the chroot has no group rabbitmq}" "$CERTS/server.key" "$root/certs"
}

# An own port for epmd, so that other Erlang nodes of this machine stay apart.
rabbitmq_command() { # PROGRAM ARGS...: one word per line
    rabbitmq_enter "$(rabbitmq_root)" rabbitmq:rabbitmq \
        ERL_EPMD_ADDRESS=127.0.0.1 ERL_EPMD_PORT=14369 \
        RABBITMQ_NODENAME=cqrs@localhost RABBITMQ_DIST_PORT=25672 \
        RABBITMQ_CONF_ENV_FILE=/cqrs/none RABBITMQ_CONFIG_FILE=/cqrs/rabbitmq.conf \
        RABBITMQ_ENABLED_PLUGINS_FILE=/cqrs/enabled_plugins \
        RABBITMQ_MNESIA_BASE=/cqrs/data RABBITMQ_LOGS=- \
        RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS='-kernel inet_dist_use_interface {127,0,0,1} +sbwt none' \
        "$@"
}

rabbitmq_start() {
    local words
    rabbitmq_configure
    rabbitmq_remember
    mapfile -t words < <(rabbitmq_command "$(mark rabbitmq)" /usr/lib/rabbitmq/bin/rabbitmq-server)
    daemon rabbitmq "${RABBITMQ_LOGS[0]}" "${words[@]}"
}

rabbitmq_ctl() { # PROGRAM ARGS...
    local words
    mapfile -t words < <(rabbitmq_command RABBITMQ_CTL_ERL_ARGS='-start_epmd false' \
        "/usr/lib/rabbitmq/bin/$1")
    "${words[@]}" "${@:2}"
}

# A broker greets a client of AMQP 0-9-1 with a method frame (01) on channel 0.
rabbitmq_ready() {
    [[ $(ask 5672 8 414d515000000901) == 010000* ]] && listens "${RABBITMQ_PORTS[@]}"
}

# Asks the node itself; slow, so only after a start.
rabbitmq_booted() {
    rabbitmq_ready && rabbitmq_ctl rabbitmq-diagnostics -q check_running >/dev/null 2>&1
}

rabbitmq_beams() {
    local pid
    for pid in $(pids rabbitmq); do
        [[ $(cat "/proc/$pid/comm" 2>/dev/null) != beam.smp ]] || echo "$pid"
    done
}
rabbitmq_beams_gone() { [[ -z $(rabbitmq_beams) ]]; }

# Only the Erlang machine may be told to end: without its helpers it crashes.
rabbitmq_stop() {
    local beams
    mapfile -t beams < <(rabbitmq_beams)
    ((${#beams[@]} == 0)) || as_root kill -s TERM "${beams[@]}" 2>/dev/null || true
    wait_for 30 rabbitmq_beams_gone || say "RabbitMQ does not stop, killing it"
}
