package port

import (
	"context"
	"errors"
	"net"

	"google.golang.org/grpc/credentials"
)

// Credentials tell a gRPC server what the port's handshake has found out.
func Credentials() credentials.TransportCredentials { return shaken{} }

type shaken struct{}

// ServerHandshake implements credentials.TransportCredentials.
func (shaken) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	t, ok := c.(*Conn)
	if !ok {
		return nil, nil, errors.New("this connection did not come through the port")
	}
	return c, credentials.TLSInfo{State: t.ConnectionState(), CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}, nil
}

// ClientHandshake implements credentials.TransportCredentials; there is none.
func (shaken) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these are the credentials of a server")
}

// Info implements credentials.TransportCredentials.
func (shaken) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone implements credentials.TransportCredentials.
func (shaken) Clone() credentials.TransportCredentials { return shaken{} }

// OverrideServerName implements credentials.TransportCredentials.
func (shaken) OverrideServerName(string) error { return nil }
