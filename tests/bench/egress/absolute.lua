-- What a client of a forward proxy sends.
local line = "GET http://api.allowed.test/ HTTP/1.1\r\nHost: api.allowed.test\r\n\r\n"
request = function() return line end
