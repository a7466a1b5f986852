-- Asks for a file at random, each alike: x00000, x00001, … under the address that wrk was given.
local files = tonumber(os.getenv("FILES"))
local path

function init()
    math.randomseed(tonumber(os.getenv("SEED")))
    path = wrk.path
end

function request()
    return wrk.format("GET", string.format("%sx%05d", path, math.random(0, files - 1)))
end
