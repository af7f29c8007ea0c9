# shellcheck shell=bash
# shellcheck disable=SC2034,SC2153  # names that the other files set or use
# MariaDB as a local process: the server of Debian's packages without their service.

MARIADB_PORTS=(3306)
MARIADB_HOME=$STATE/mariadb
MARIADB_LOGS=("$MARIADB_HOME/server.log")
MARIADB_BOOT_SECONDS=60

# Its programs read option files of the system and of the user: they get none.
MARIADB_CLEAN=(env -i PATH="$PATH:/usr/sbin" LANG=C.UTF-8)

mariadb_version() {
    [[ -x /usr/sbin/mariadbd ]] || return 0
    /usr/sbin/mariadbd --version | sed -E 's/.*Ver ([0-9.]+).*/\1/'
}

# mariadb-server would start a service, on the port wanted here.
mariadb_install() {
    if [[ ! -x /usr/sbin/mariadbd || ! -x /usr/bin/mariadb ]]; then
        apt_install mariadb-server-core mariadb-client-core
    fi
    # The user that mariadb-server would make.
    ((EUID != 0)) || getent passwd mysql >/dev/null ||
        useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /bin/false mysql
}

# What root starts runs as the user mysql, who cannot look into root's home: then the data lies
# below /var/lib, with a link to it where it is expected.
MARIADB_USER=()
((EUID != 0)) || MARIADB_USER=(setpriv --reuid=mysql --regid=mysql --init-groups)

mariadb_place() {
    local dir=$MARIADB_HOME
    if ((EUID == 0)); then
        dir=/var/lib/cqrs-brokers/$(cksum <<<"$STATE" | cut -d ' ' -f 1)-mariadb
        ln -sfn "$dir" "$MARIADB_HOME"
    fi
    mkdir -p "$dir"
    ((EUID != 0)) || chown mysql:mysql "$dir"
}

mariadb_data() { echo "$(readlink -f "$MARIADB_HOME")/data"; }

mariadb_format() { # DATA
    remove "$MARIADB_HOME/data"
    cd /
    "${MARIADB_CLEAN[@]}" "${MARIADB_USER[@]}" mariadb-install-db --no-defaults --datadir="$1" \
        --auth-root-authentication-method=normal --skip-test-db &&
        { echo 'flush privileges;'; cat "$ROOT/docker/mariadb.sql"; } |
        "${MARIADB_CLEAN[@]}" "${MARIADB_USER[@]}" mariadbd --no-defaults --datadir="$1" --bootstrap &&
        touch "$1/formatted"
}

mariadb_start() {
    local data
    mariadb_place
    data=$(mariadb_data)
    [[ -e $data/formatted ]] || mariadb_format "$data" >>"${MARIADB_LOGS[0]}" 2>&1
    daemon mariadb "${MARIADB_LOGS[0]}" "${MARIADB_USER[@]}" /usr/sbin/mariadbd --no-defaults \
        --datadir="$data" --socket="$data/server.sock" --pid-file="$data/server.pid" \
        --bind-address=127.0.0.1 --port=3306 --skip-name-resolve --max-connections=200
}

# By address: the name localhost would mean the socket.
mariadb_ready() {
    command -v mariadb >/dev/null &&
        "${MARIADB_CLEAN[@]}" timeout 5 mariadb --no-defaults --host=127.0.0.1 --port=3306 --user=cqrs \
            --password=cqrs --connect-timeout=2 --execute='select 1' cqrs >/dev/null 2>&1
}

mariadb_stop() {
    signal TERM mariadb
    wait_for 60 gone mariadb || say "MariaDB does not stop, killing it"
}

mariadb_booted() { mariadb_ready; }
