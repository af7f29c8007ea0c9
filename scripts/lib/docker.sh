# shellcheck shell=bash
# shellcheck disable=SC2034,SC2153  # names that the other files set or use
# The servers as containers of docker-compose.yml, with the certificates that
# this script has made.

compose() {
    CQRS_BROKERS_CERTS=$CERTS CQRS_RABBITMQ=$RABBITMQ_RELEASE \
        docker compose -f "$ROOT/docker-compose.yml" "$@"
}

docker_up() { # SERVER...
    rabbitmq_remember
    if ! compose up -d --wait --wait-timeout 300 "$@"; then
        compose logs --tail 40 "$@" >&2
        die "not ready: see above (then: $0 down $*; $0 up $*)"
    fi
}

docker_start() {
    [[ $(docker_state "$1") != paused ]] || compose unpause "$1"
    docker_up "$1"
}

docker_down() { # SERVER...
    local server
    for server in "$@"; do
        # A paused container cannot be told to stop.
        [[ $(docker_state "$server") != paused ]] || compose unpause "$server"
    done
    compose stop "$@"
}

docker_stop() { docker_down "$1"; }
docker_kill() { compose kill "$1"; }
docker_pause() { compose pause "$1"; }
docker_resume() { compose unpause "$1"; }
docker_ctl() { compose exec -T rabbitmq rabbitmqctl "$@"; }

docker_inspect() { # SERVER FORMAT
    local container
    container=$(compose ps -aq "$1")
    [[ -n $container ]] && docker inspect -f "$2" "$container"
}

docker_state() { # SERVER
    case $(docker_inspect "$1" '{{.State.Status}} {{.State.Health.Status}}') in
        "running healthy") echo up ;;
        running*) echo unready ;;
        paused*) echo paused ;;
        *) echo down ;;
    esac
}

docker_version() {
    docker_inspect "$1" '{{.Config.Image}}' | sed 's/.*://' || echo -
}
