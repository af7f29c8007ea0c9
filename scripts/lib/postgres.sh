# shellcheck shell=bash
# shellcheck disable=SC2034,SC2153  # names that the other files set or use
# PostgreSQL as a local process: Debian's package, a cluster of our own.

POSTGRES_PORTS=(5432)
POSTGRES_HOME=$STATE/postgres
POSTGRES_LOGS=("$POSTGRES_HOME/server.log")
POSTGRES_BOOT_SECONDS=60

postgres_bin() { # the newest installed release
    local bin
    bin=$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
    [[ -x $bin/postgres ]] && printf '%s' "$bin"
}

postgres_version() {
    local bin
    bin=$(postgres_bin) || return 0
    "$bin/postgres" --version | sed -E 's/[^0-9]*([0-9.]+).*/\1/'
}

postgres_install() {
    local config=/etc/postgresql-common/createcluster.conf
    postgres_bin >/dev/null && return
    # Debian would start a cluster of its own, on the port wanted here.
    as_root mkdir -p "${config%/*}"
    [[ -e $config ]] || echo 'create_main_cluster = false' | as_root tee "$config" >/dev/null
    as_root sed -i -E 's/^#?\s*create_main_cluster.*/create_main_cluster = false/' "$config"
    apt_install postgresql
}

# PostgreSQL refuses to be root. What root starts runs as the user postgres, who
# cannot look into root's home: then the data lies below /var/lib, with a link to
# it where it is expected.
POSTGRES_USER=()
((EUID != 0)) || POSTGRES_USER=(setpriv --reuid=postgres --regid=postgres --init-groups)

postgres_place() {
    local dir=$POSTGRES_HOME
    if ((EUID == 0)); then
        dir=/var/lib/cqrs-brokers/$(cksum <<<"$STATE" | cut -d ' ' -f 1)
        ln -sfn "$dir" "$POSTGRES_HOME"
    fi
    mkdir -p "$dir"
    ((EUID != 0)) || chown postgres:postgres "$dir"
}

postgres_data() { echo "$(readlink -f "$POSTGRES_HOME")/$(postgres_bin | cut -d / -f 5)"; }

postgres_format() { # DATA
    local bin password=${1%/*}/password
    bin=$(postgres_bin)
    rm -rf "$1"
    echo cqrs >"$password"
    cd /
    "${POSTGRES_USER[@]}" "$bin/initdb" -D "$1" -U cqrs -A scram-sha-256 --pwfile="$password" \
        -E UTF8 --locale=C.UTF-8
    "${POSTGRES_USER[@]}" "$bin/postgres" --single -D "$1" postgres <<<'create database cqrs'
    rm "$password"
    touch "$1/formatted"
}

postgres_start() {
    local data
    postgres_place
    data=$(postgres_data)
    [[ -e $data/formatted ]] || postgres_format "$data" >>"${POSTGRES_LOGS[0]}" 2>&1 </dev/null
    # Left by kill -9; the server is known to be gone, its number may be in use again.
    rm -f "$data/postmaster.pid"
    daemon postgres "${POSTGRES_LOGS[0]}" "${POSTGRES_USER[@]}" "$(postgres_bin)/postgres" \
        -D "$data" -p 5432 -c unix_socket_directories= -c listen_addresses=localhost -c max_connections=200
}

postgres_ready() {
    local bin
    bin=$(postgres_bin) || return 1
    "$bin/pg_isready" -q -h localhost -p 5432 -t 2 &&
        PGCONNECT_TIMEOUT=2 "$bin/psql" -qAtw -c 'select 1' \
            postgres://cqrs:cqrs@localhost:5432/cqrs >/dev/null 2>&1
}

postgres_stop() {
    local main
    main=$(head -n 1 "$(postgres_data)/postmaster.pid" 2>/dev/null || true)
    [[ -z $main ]] || kill -s INT "$main" 2>/dev/null || true
    wait_for 30 gone postgres || say "PostgreSQL does not stop, killing it"
}

postgres_booted() { postgres_ready; }
