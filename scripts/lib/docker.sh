# shellcheck shell=bash
# shellcheck disable=SC2034,SC2153  # names that the other files set or use
# The servers as containers of docker-compose.yml, with the certificates that
# this script has made.

# The image of a release of RabbitMQ. (That of the default one is in the Compose file, too.)
docker_rabbitmq() { # RELEASE
    case $1 in
        4 | 4.3) echo rabbitmq:4.3.6-management ;;
        4.0) echo rabbitmq:4.0.9-management ;;
        3.10) echo rabbitmq:3.10.25-management ;;
        *) die "CQRS_RABBITMQ is $1, it may be 4, 4.0 or 3.10" ;;
    esac
}

compose() {
    local image
    image=$(docker_rabbitmq "$RABBITMQ_RELEASE")
    CQRS_BROKERS_CERTS=$CERTS CQRS_RABBITMQ=$RABBITMQ_RELEASE CQRS_RABBITMQ_IMAGE=$image \
        docker compose -f "$ROOT/docker-compose.yml" "$@"
}

docker_up() { # SERVER...
    if [[ $RABBITMQ_RELEASE == "$(rabbitmq_last)" ]] && docker_all up "$@"; then
        return
    fi
    rabbitmq_remember
    docker_unpause "$@"
    compose up -d "$@" || die "docker compose failed: see above"
    # Not up --wait: that gives up on a container that was paused a moment ago,
    # because it counts as unhealthy until the next health check.
    local end=$((SECONDS + 300))
    until docker_all up "$@"; do
        if docker_any down "$@" || ((SECONDS >= end)); then
            compose logs --tail 40 "$@" >&2
            die "not ready: see above (then: $0 down $*; $0 up $*)"
        fi
        sleep 0.5
    done
}

docker_start() { docker_up "$1"; }

docker_all() { # STATE SERVER...
    local server
    for server in "${@:2}"; do
        [[ $(docker_state "$server") == "$1" ]] || return 1
    done
}

docker_any() { # STATE SERVER...
    local server
    for server in "${@:2}"; do
        [[ $(docker_state "$server") != "$1" ]] || return 0
    done
    return 1
}

docker_unpause() { # SERVER...
    local server
    for server in "$@"; do
        [[ $(docker_state "$server") != paused ]] || compose unpause "$server"
    done
}

docker_down() { # SERVER...
    docker_unpause "$@" # a paused container cannot be told to stop
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
    docker_inspect "$1" '{{.Config.Image}}' | sed 's/.*://; s/-.*//'
}
