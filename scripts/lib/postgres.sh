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

POSTGRES_CONFIG=/etc/postgresql-common/createcluster.conf
POSTGRES_CONFIG_DEFAULT=/usr/share/postgresql-common/createcluster.conf

# Debian would start a cluster of its own, on the port wanted here. During the installation the
# system's configuration says that it shall not; then it is put back.
postgres_install() {
    postgres_bin >/dev/null && return
    (
        trap postgres_restore_config EXIT
        as_root mkdir -p "${POSTGRES_CONFIG%/*}"
        # One that an interrupted call has kept is the original.
        [[ ! -e $POSTGRES_CONFIG || -e $POSTGRES_CONFIG.cqrs-kept ]] ||
            as_root cp -p "$POSTGRES_CONFIG" "$POSTGRES_CONFIG.cqrs-kept"
        echo 'create_main_cluster = false' | as_root tee "$POSTGRES_CONFIG" >/dev/null
        apt_install postgresql
    )
}

# What was there before; else the default of the package that has come.
postgres_restore_config() {
    if [[ -e $POSTGRES_CONFIG.cqrs-kept ]]; then
        as_root mv "$POSTGRES_CONFIG.cqrs-kept" "$POSTGRES_CONFIG"
    elif [[ -e $POSTGRES_CONFIG_DEFAULT ]]; then
        as_root cp "$POSTGRES_CONFIG_DEFAULT" "$POSTGRES_CONFIG"
    else
        as_root rm -f "$POSTGRES_CONFIG"
    fi
}

# PostgreSQL refuses to be root. What root starts runs as the user postgres, who
# cannot look into root's home: then the data lies below /var/lib, with a link to
# it where it is expected.
POSTGRES_USER=()
# Its programs look at many variables (PGHOSTADDR, PGSSLMODE, ...): they get none.
POSTGRES_CLEAN=(env -i PATH="$PATH" LANG=C.UTF-8)
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
    remove "$POSTGRES_HOME/${1##*/}"
    echo cqrs >"$password"
    cd /
    "${POSTGRES_CLEAN[@]}" "${POSTGRES_USER[@]}" "$bin/initdb" -D "$1" -U cqrs -A scram-sha-256 --pwfile="$password" \
        -E UTF8 --locale=C.UTF-8
    "${POSTGRES_CLEAN[@]}" "${POSTGRES_USER[@]}" "$bin/postgres" --single -D "$1" postgres <<<'create database cqrs'
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
    "${POSTGRES_CLEAN[@]}" "$bin/pg_isready" -q -h localhost -p 5432 -t 2 &&
        "${POSTGRES_CLEAN[@]}" PGCONNECT_TIMEOUT=2 "$bin/psql" -qAtw -c 'select 1' \
            postgres://cqrs:cqrs@localhost:5432/cqrs >/dev/null 2>&1
}

postgres_stop() {
    local main
    main=$(head -n 1 "$(postgres_data)/postmaster.pid" 2>/dev/null || true)
    [[ -z $main ]] || kill -s INT "$main" 2>/dev/null || true
    wait_for 30 gone postgres || say "PostgreSQL does not stop, killing it"
}

postgres_booted() { postgres_ready; }
