-- The user of the tests, who makes databases of its own. Run once, by the container or by scripts/brokers.
CREATE DATABASE cqrs;
CREATE USER cqrs IDENTIFIED BY 'cqrs';
GRANT ALL ON *.* TO cqrs;
