"""Generated from health.proto by `make proto`. Change that file, not this one."""

from .pool import load, names_of

DESCRIPTOR = load(
    b'\n\x0chealth.proto\x12\x0egrpc.health.v1'
    b'".\n\x12HealthCheckRequest\x12\x18\n\x07serv'
    b'ice\x18\x01 \x01(\tR\x07service"\xb1\x01\n\x13HealthC'
    b'heckResponse\x12I\n\x06status\x18\x01 \x01(\x0e21'
    b'.grpc.health.v1.HealthCheckRes'
    b'ponse.ServingStatusR\x06status"O\n'
    b'\rServingStatus\x12\x0b\n\x07UNKNOWN\x10\x00\x12\x0b\n'
    b'\x07SERVING\x10\x01\x12\x0f\n\x0bNOT_SERVING\x10\x02\x12\x13\n'
    b'\x0fSERVICE_UNKNOWN\x10\x032\xae\x01\n\x06Health\x12'
    b'P\n\x05Check\x12".grpc.health.v1.Heal'
    b'thCheckRequest\x1a#.grpc.health.v'
    b'1.HealthCheckResponse\x12R\n\x05Watch'
    b'\x12".grpc.health.v1.HealthCheckR'
    b'equest\x1a#.grpc.health.v1.Health'
    b'CheckResponse0\x01b\x06proto3'
)
globals().update(names_of(DESCRIPTOR))
