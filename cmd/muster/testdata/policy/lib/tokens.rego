package lib.tokens

claims := payload if {
	[_, payload, _] := io.jwt.decode(input.headers.Authorization)
}
