// Publishes one prompt and prints the completion of its turn, with nothing but a Kafka client.
//
//   node publish-and-read.mjs BROKER PREFIX THREAD TEXT
//
// BROKER is host:port, PREFIX the topic prefix (may be empty). The completion is printed as one line of JSON.
// Settings: TURNLOG_AGENT (assistant), TURNLOG_TIMEOUT_SECONDS (60).
// Exit codes: 0 completed, 1 the turn ended otherwise or Kafka failed, 2 wrong usage, 3 no answer in time.
import { randomUUID } from 'node:crypto'
import { Kafka, Partitioners, logLevel } from 'kafkajs'

const TERMINAL = new Set(['turn.completed', 'turn.failed', 'turn.cancelled', 'turn.rejected'])
const [broker, prefix, thread, text] = process.argv.slice(2)
if (!broker || prefix === undefined || !thread || !text) {
  console.error('usage: node publish-and-read.mjs BROKER PREFIX THREAD TEXT')
  process.exit(2)
}
const agent = process.env.TURNLOG_AGENT ?? 'assistant'
const seconds = Number(process.env.TURNLOG_TIMEOUT_SECONDS ?? 60)

class NoAnswer extends Error {}

// The answer may be there before a reader that starts at the end is ready, so its places are taken before publishing.
async function endOf(admin, topic) {
  const offsets = await admin.fetchTopicOffsets(topic)
  return new Map(offsets.map(({ partition, high }) => [partition, high]))
}

async function answerOf(consumer, topic, places, deadline, publish) {
  let resolve
  let reject
  const answered = new Promise((...settlers) => ([resolve, reject] = settlers))
  const timer = setTimeout(() => reject(new NoAnswer(`no answer within ${seconds} s`)), deadline - Date.now())
  consumer.on(consumer.events.CRASH, ({ payload }) => reject(payload.error))
  await consumer.subscribe({ topic, fromBeginning: true })
  await consumer.run({
    autoCommit: false,
    eachMessage: async ({ partition, message }) => {
      if (BigInt(message.offset) < BigInt(places.get(partition) ?? 0)) return // before the seek: an older answer
      if (message.key?.toString() !== thread || !message.value) return
      const type = message.headers?.ce_type?.toString()
      const event = JSON.parse(message.value.toString())
      if (TERMINAL.has(type ?? event.type)) resolve(event)
    },
  })
  for (const [partition, offset] of places) consumer.seek({ topic, partition, offset })
  try {
    await publish()
    return await answered
  } finally {
    clearTimeout(timer)
  }
}

const kafka = new Kafka({ clientId: 'turnlog-client-node', brokers: [broker], logLevel: logLevel.ERROR })
const admin = kafka.admin()
// The default partitioner is Java's murmur2: a thread lands where every other client puts it.
const producer = kafka.producer({ createPartitioner: Partitioners.DefaultPartitioner })
// read_committed is the default of this client (readUncommitted: false).
const consumer = kafka.consumer({ groupId: `${prefix}client-node-${randomUUID()}`, readUncommitted: false })

let code = 1
try {
  const completions = `${prefix}completions`
  await Promise.all([admin.connect(), producer.connect(), consumer.connect()])
  const places = await endOf(admin, completions)
  const event = await answerOf(consumer, completions, places, Date.now() + seconds * 1000, () =>
    producer.send({
      topic: `${prefix}prompts`,
      messages: [{ key: thread, value: JSON.stringify({ thread_id: thread, agent, content: text }) }],
    }),
  )
  console.log(JSON.stringify(event))
  code = event.type === 'turn.completed' ? 0 : 1
} catch (error) {
  console.error(error.message)
  code = error instanceof NoAnswer ? 3 : 1
} finally {
  await Promise.allSettled([consumer.disconnect(), producer.disconnect(), admin.disconnect()])
}
process.exit(code)
