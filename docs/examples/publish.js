// A publisher in JavaScript: `npm install nats`, then URL, CREDS and INBOX as `callboard creds new NAME` printed them.
const { connect, credsAuthenticator, JSONCodec } = require('nats')
const fs = require('fs')

async function main() {
  const bus = await connect({
    servers: process.env.URL,
    authenticator: credsAuthenticator(fs.readFileSync(process.env.CREDS)),
    inboxPrefix: process.env.INBOX,
  })
  const json = JSONCodec()
  bus.publish('topic.news', json.encode({ type: 'news', text: 'hello from JavaScript' }))
  const answer = await bus.request('actor.c', json.encode({ type: 'bench.add', amount: 3 }), { timeout: 5000 })
  console.log(json.decode(answer.data))
  await bus.drain()
}

main()
