# shellcheck shell=bash
# shellcheck disable=SC2034,SC2153  # names that the other files set or use
# Apache Kafka as a local process: jars from Maven Central, one KRaft node.

# One place says which release: the Compose file.
KAFKA_VERSION=$(sed -n 's#^ *image: apache/kafka:##p' "$ROOT/docker-compose.yml" | head -n 1)
KAFKA_LOG4J=2.25.4 # the log4j that this Kafka is built with
MAVEN_COPY=org.apache.maven.plugins:maven-dependency-plugin:2.8
KAFKA_PORTS=(9092 9093 9094 9095 19092 9193)
KAFKA_HOME=$STATE/kafka
KAFKA_LIB=$KAFKA_HOME/lib-$KAFKA_VERSION
KAFKA_DATA=$KAFKA_HOME/data-$KAFKA_VERSION
KAFKA_LOGS=("$KAFKA_HOME/log/console.log" "$KAFKA_HOME/log/server.log")
KAFKA_BOOT_SECONDS=300 # after kill -9 it checks every log first

# The version file is written at a start, and so tells what runs.
kafka_version() { cat "$KAFKA_HOME/version" 2>/dev/null || echo "$KAFKA_VERSION"; }

kafka_java() {
    local java
    for java in "${JAVA_HOME:-}/bin/java" java; do
        java=$(command -v "$java") || continue
        if [[ $("$java" -version 2>&1) =~ version\ \"([0-9]+) ]] && ((BASH_REMATCH[1] >= 17)); then
            printf '%s' "$java"
            return
        fi
    done
    return 1
}

# Debian's releases have different ones; older releases' default is too old.
java_install() {
    kafka_java >/dev/null || apt_install default-jre-headless
    kafka_java >/dev/null || apt_install openjdk-17-jre-headless
}

kafka_install() {
    java_install
    [[ ! -d $KAFKA_LIB ]] || return 0
    command -v mvn >/dev/null || apt_install maven
    say "downloading Kafka $KAFKA_VERSION"
    local work=$KAFKA_HOME/download
    remove "$work"
    mkdir -p "$work"
    cat >"$work/pom.xml" <<END
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>cqrs</groupId><artifactId>kafka</artifactId><version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId>
      <version>$KAFKA_VERSION</version>
    </dependency>
    <dependency>
      <groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId>
      <version>$KAFKA_LOG4J</version>
    </dependency>
  </dependencies>
</project>
END
    if ! mvn -q -B -C -f "$work/pom.xml" "$MAVEN_COPY:copy-dependencies" -DincludeScope=runtime \
        -DoutputDirectory="$work/lib" >"$work/log" 2>&1 </dev/null; then
        tail -n 20 "$work/log" >&2
        die "could not download Kafka $KAFKA_VERSION from Maven Central, see $work/log"
    fi
    verified "$work/lib" "$ROOT/scripts/lib/kafka-$KAFKA_VERSION.sha512" >>"$work/log" 2>&1 || {
        tail -n 20 "$work/log" >&2
        die "the jars of Kafka $KAFKA_VERSION are not those of scripts/lib/kafka-$KAFKA_VERSION.sha512"
    }
    mv "$work/lib" "$KAFKA_LIB"
}

kafka_configure() {
    mkdir -p "$KAFKA_HOME/log"
    sed -e "s#0\.0\.0\.0#127.0.0.1#g; s#/certs/#$CERTS/#g; s#^log.dirs=.*#log.dirs=$KAFKA_DATA#" \
        "$ROOT/docker/kafka.properties" >"$KAFKA_HOME/server.properties"
    cat >"$KAFKA_HOME/log4j2.properties" <<END
status = error
appender.file.type = RollingFile
appender.file.name = file
appender.file.fileName = ${KAFKA_LOGS[1]}
appender.file.filePattern = ${KAFKA_LOGS[1]}.%i
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d{ISO8601} %-5p %m (%c)%n
appender.file.policies.type = Policies
appender.file.policies.size.type = SizeBasedTriggeringPolicy
appender.file.policies.size.size = 20MB
appender.file.strategy.type = DefaultRolloverStrategy
appender.file.strategy.max = 3
rootLogger.level = info
rootLogger.appenderRef.file.ref = file
logger.clients.name = org.apache.kafka.clients
logger.clients.level = warn
logger.config.name = org.apache.kafka.common.config
logger.config.level = warn
END
}

kafka_class() { # CLASS ARGS...: the java command line, one word per line
    printf '%s\n' "$(kafka_java)" "-Dlog4j2.configurationFile=file:$KAFKA_HOME/log4j2.properties" \
        -cp "$KAFKA_LIB/*" "$@"
}

kafka_format() {
    local words
    remove "$KAFKA_DATA"
    mapfile -t words < <(kafka_class kafka.tools.StorageTool)
    "${words[@]}" format --config "$KAFKA_HOME/server.properties" \
        --cluster-id Y3Fycy1icm9rZXJzLWRldg \
        --add-scram 'SCRAM-SHA-256=[name=cqrs,password=cqrs-secret]' \
        --add-scram 'SCRAM-SHA-512=[name=cqrs,password=cqrs-secret]' \
        >"$KAFKA_HOME/format.log" 2>&1 </dev/null || {
        cat "$KAFKA_HOME/format.log" >&2
        die "could not format the data directory of Kafka"
    }
    touch "$KAFKA_DATA.formatted"
}

kafka_start() {
    local words
    kafka_configure
    [[ -e $KAFKA_DATA.formatted ]] || kafka_format
    printf '%s\n' "$KAFKA_VERSION" >"$KAFKA_HOME/version"
    mapfile -t words < <(kafka_class kafka.Kafka "$KAFKA_HOME/server.properties")
    daemon kafka "${KAFKA_LOGS[0]}" "${words[0]}" -Xms256m -Xmx768m \
        -XX:ErrorFile="$KAFKA_HOME/log/java-error.log" "${words[@]:1}"
}

# The answer to a Metadata request (version 1, no topics) names the brokers that
# take work; the answer to DescribeUserScramCredentials (version 0, user "cqrs")
# has no error (0000), no message to it and two mechanisms (03).
kafka_ready() {
    local answer client=0003707262 user=0563717273
    answer=$(ask 9092 256 "0000001100030001""00000001${client}00000000") || return 1
    [[ $answer == ????????"0000000100000001"* ]] || return 1
    answer=$(ask 9092 256 "0000001600320000""00000002${client}0002${user}0000") || return 1
    [[ $answer == ????????"00000002"*"${user}0000"??03* ]] || return 1
    listens "${KAFKA_PORTS[@]}"
}

kafka_stop() {
    signal TERM kafka
    wait_for 30 gone kafka || say "Kafka does not stop, killing it"
}

kafka_booted() { kafka_ready; }
