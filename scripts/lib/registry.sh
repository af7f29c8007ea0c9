# shellcheck shell=bash
# shellcheck disable=SC2034,SC2153  # names that the other files set or use
# Apicurio Registry as a local process: a schema registry that speaks Confluent's
# API below /apis/ccompat/v7. The jars are from Maven Central, the storage is in
# memory: a restart begins with nothing.

# One place says which release: the Compose file. (3.x needs Java 21.)
REGISTRY_VERSION=$(sed -n 's#^ *image: apicurio/apicurio-registry-mem:##p' "$ROOT/docker-compose.yml")
REGISTRY_PORTS=(8081)
REGISTRY_HOME=$STATE/registry
REGISTRY_LIB=$REGISTRY_HOME/lib-$REGISTRY_VERSION
REGISTRY_LOGS=("$REGISTRY_HOME/server.log")
REGISTRY_BOOT_SECONDS=120

# The version file is written at a start, and so tells what runs.
registry_version() { cat "$REGISTRY_HOME/version" 2>/dev/null || echo "$REGISTRY_VERSION"; }

registry_install() {
    java_install
    [[ ! -d $REGISTRY_LIB ]] || return 0
    command -v mvn >/dev/null || apt_install maven
    say "downloading Apicurio Registry $REGISTRY_VERSION"
    local work=$REGISTRY_HOME/download
    remove "$work"
    mkdir -p "$work/get" "$work/lib"
    if ! mvn -q -B -C "$MAVEN_COPY:copy" -DoutputDirectory="$work/get" \
        -Dartifact="io.apicurio:apicurio-registry-app:$REGISTRY_VERSION:tar.gz:all" \
        >"$work/log" 2>&1 </dev/null; then
        tail -n 20 "$work/log" >&2
        die "could not download Apicurio Registry $REGISTRY_VERSION from Maven Central, see $work/log"
    fi
    verified "$work/get" "$ROOT/scripts/lib/registry-$REGISTRY_VERSION.sha512" >>"$work/log" 2>&1 || {
        tail -n 20 "$work/log" >&2
        die "Apicurio Registry $REGISTRY_VERSION is not what scripts/lib/registry-$REGISTRY_VERSION.sha512 says"
    }
    env -u TAR_OPTIONS tar -xzf "$work/get/apicurio-registry-app-$REGISTRY_VERSION-all.tar.gz" -C "$work/lib"
    mv "$work/lib" "$REGISTRY_LIB"
    remove "$work"
}

registry_start() {
    printf '%s\n' "$REGISTRY_VERSION" >"$REGISTRY_HOME/version"
    daemon registry "${REGISTRY_LOGS[0]}" "$(kafka_java)" -Xms128m -Xmx384m \
        -XX:ErrorFile="$REGISTRY_HOME/java-error.log" \
        -Dquarkus.http.host=127.0.0.1 -Dquarkus.http.port="${REGISTRY_PORTS[0]}" \
        -jar "$REGISTRY_LIB/apicurio-registry-app-$REGISTRY_VERSION-runner.jar"
}

# It answers the list of subjects: "HTTP/1.0 200".
registry_ready() {
    local answer request
    request=$(printf 'GET /apis/ccompat/v7/subjects HTTP/1.0\r\n\r\n' | od -An -v -tx1 | tr -d ' \n')
    answer=$(ask "${REGISTRY_PORTS[0]}" 256 "$request") || return 1
    [[ $answer == 485454502f312e3?20323030* ]]
}

registry_stop() {
    signal TERM registry
    wait_for 30 gone registry || say "Apicurio Registry does not stop, killing it"
}

registry_booted() { registry_ready; }
